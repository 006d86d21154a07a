"""Keeping evaluation sets out of training text."""
