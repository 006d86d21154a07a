"""Optional libraries, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from puyulm.errors import DataError


def needs(module: str, package: str, extra: str = "data") -> Any:
    """Imports an optional module.

    Args:
        module: To import.
        package: That brings it.
        extra: Of PuyuLM, that brings the package; none if empty.

    Raises:
        DataError: It is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != module.partition(".")[0]:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
            raise DataError(f"{package} is installed, but cannot be imported ({reason})") from error
        ways = [f"pip install 'puyulm[{extra}]'"] if extra else []
        raise DataError(f"{package} is not installed: {', or '.join([*ways, f'pip install {package}'])}") from None
