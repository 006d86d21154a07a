"""Duplicates: exact and near ones, of documents, paragraphs and passages, in bounded memory."""
