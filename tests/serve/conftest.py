"""Extra `serve`: without it these tests are left out."""

from __future__ import annotations

import pytest

for package in ("fastapi", "uvicorn", "prometheus_client", "llguidance", "openai", "httpx"):
    pytest.importorskip(package)
