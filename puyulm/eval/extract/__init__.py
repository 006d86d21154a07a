"""Answers in what a model wrote: letters, numbers, boxed expressions, code. Pure functions of text.

Two kinds of rules: *strict* ones take what the protocol asked for, to the letter; *lenient* ones also take what a
person would (Markdown, LaTeX, full-width forms, a letter with its text).
"""
