"""Whatever fits the published schema, or does not: never a fault of the server's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import running

schemathesis = pytest.importorskip("schemathesis")


def test_no_request_is_a_fault(tmp_path: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    allowed = {200, 400, 404, 405, 413, 415, 429}
    with running(write_checkpoint(tmp_path)) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        seen = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            seen.add(operation.path)

            @settings(
                max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def answered(case: Any) -> None:
                response = case.call(base_url=server.url)
                assert response.status_code in allowed, (case.body, response.text)

            answered()
        assert {"/v1/chat/completions", "/v1/completions", "/v1/rerank", "/tokenize"} <= seen
        server.wait_until_free()
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
