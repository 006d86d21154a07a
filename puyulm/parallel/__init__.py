"""Parallelism and compilation, applied to a decoder from outside: one technique a function."""
