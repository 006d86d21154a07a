"""PuyuLM (浦语): the whole life of an InternLM in one small codebase."""

__version__ = "0.1.0"
