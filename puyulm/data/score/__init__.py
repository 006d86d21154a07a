"""Scorers of documents: training, using and improving them."""
