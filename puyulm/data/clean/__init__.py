"""Cleaning: text in one form, and rules that keep a document or say why not."""
