"""Skips, with the reason, what needs a sandbox where there cannot be one."""

from __future__ import annotations

import pytest

from puyulm.errors import SandboxError
from puyulm.sandbox import check


@pytest.fixture(scope="session")
def sandbox() -> None:
    try:
        check()
    except SandboxError as error:
        pytest.skip(str(error))
