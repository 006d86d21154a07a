"""Optional libraries, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from puyulm.errors import DataError


def needs(module: str, package: str, extra: str = "data") -> Any:
    """Imports an optional module.

    Raises:
        DataError: It is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{package} is not installed: pip install 'puyulm[{extra}]' (or pip install {package})"
        ) from None
