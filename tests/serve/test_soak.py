"""The soak script in small: many clients at once, some of which leave or write nonsense; and a killed replica."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from benchmarks import soak
from tests.engine.checkpoints import write_checkpoint

FLAGS = ("--memory", "8MiB", "--device", "cpu", "--max-running", "32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("soak"), max_position_embeddings=4096))


def test_many_clients_get_their_own_answers_and_leave_nothing(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with soak.served(model, 2, *FLAGS) as (url, server):
        replicas = soak.children(server.pid)
        assert asyncio.run(soak.soak(url, [server.pid, *replicas], requests=150, rounds=2, victim=replicas[0]))
    assert server.returncode == 0
    told = capfd.readouterr()
    assert all(f"'{kind}'" in told.out for kind in ("right", "left", "refused")) and "Traceback" not in told.err


def test_a_wrong_answer_is_seen() -> None:
    class Client:
        async def post(self, path: str, json: object) -> object:
            raise ValueError("a fault")

    seen: Counter[str] = Counter()
    ask = soak.Ask(soak.CHAT, {})
    for number in range(20):
        asyncio.run(soak.one(Client(), soak.random.Random(number), [ask], seen))  # type: ignore[arg-type]
    assert set(seen) <= {"WRONG: ValueError a fault", *(kind for kind in seen if kind.startswith(soak.WRONG))}
