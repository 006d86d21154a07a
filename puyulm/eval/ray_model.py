"""One model on many machines: workers of a Ray cluster, each with a copy of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from puyulm.errors import GenerationError
from puyulm.eval.model import Continuation, LanguageModel, OnJudged, OnOutput, Output, Prompt, PromptError
from puyulm.text.messages import Message

PIECES = 8  # of the work of a worker: small enough that all end together, large enough to share beginnings


class RayModel:
    """A `puyulm.eval.model.LanguageModel` whose work is spread over workers; verdicts and files stay here.

    Args:
        make: Makes a worker's own model; it must be picklable.
        workers: How many.
        gpus: Of each.
        address: Of the cluster; None starts one on this machine.

    Raises:
        GenerationError: Ray is missing or cannot be reached, or a worker could not load the model.
    """

    def __init__(
        self, make: Callable[[], LanguageModel], workers: int, *, gpus: int = 0, address: str | None = None
    ) -> None:
        try:
            import ray
        except ImportError:
            raise GenerationError("spreading over machines needs Ray: pip install 'puyulm[ray]'") from None
        self._ray: Any = ray
        self._began = not ray.is_initialized()
        if self._began:
            # Ray would print its own lines between ours.
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise GenerationError(f"Ray cannot be reached: {str(error).splitlines()[0]}") from None
        actor = self._ray.remote(num_gpus=gpus, num_cpus=1)(_Worker)
        self._workers = [actor.remote(make) for _ in range(workers)]
        facts = self._all([worker.facts.remote() for worker in self._workers])
        self.name, self.fingerprint, self.thinks, self.context = facts[0]

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        self._spread("generate", prompts, on_output)

    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        self._spread("judge", continuations, on_judged)

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        rewards: dict[int, float] = {}
        self._spread("reward", conversations, rewards.__setitem__)
        return [rewards[index] for index in range(len(conversations))]

    def encode(self, text: str) -> list[int]:
        return self._all([self._workers[0].encode.remote(text)])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._all([self._workers[0].decode.remote(list(ids))])[0]

    def close(self) -> None:
        for worker in self._workers:
            self._ray.kill(worker)
        if self._began:
            self._ray.shutdown()

    def _spread(self, method: str, asked: Sequence[Any], report: Callable[[int, Any], None]) -> None:
        """Pieces in order, each to the next worker that is free."""
        size = max(-(-len(asked) // (len(self._workers) * PIECES)), 1)
        pieces = iter(range(0, len(asked), size))
        running: dict[Any, tuple[int, Any]] = {}

        def start(worker: Any) -> None:
            first = next(pieces, None)
            if first is not None:
                running[getattr(worker, method).remote(list(asked[first : first + size]))] = first, worker

        for worker in self._workers:
            start(worker)
        while running:
            [ready], _ = self._ray.wait(list(running), num_returns=1)
            first, worker = running.pop(ready)
            try:
                results = self._all([ready])[0]
            except PromptError as error:
                raise PromptError(first + error.index, str(error)) from None
            for offset, result in enumerate(results):
                report(first + offset, result)
            start(worker)

    def _all(self, references: Sequence[Any]) -> list[Any]:
        try:
            return self._ray.get(list(references))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PromptError):
                raise error.cause from None
            raise GenerationError(f"a worker failed: {error.cause}") from None
        except self._ray.exceptions.RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise GenerationError(
                f"a worker was lost ({reason}): the same command goes on from what is finished"
            ) from None


class _Worker:
    """Runs on a machine of the cluster."""

    def __init__(self, make: Callable[[], LanguageModel]) -> None:
        self._model = make()

    def facts(self) -> tuple[str, str, bool, int | None]:
        return self._model.name, self._model.fingerprint, self._model.thinks, self._model.context

    def generate(self, prompts: Sequence[Prompt]) -> list[Output]:
        found: dict[int, Output] = {}
        self._model.generate(prompts, found.__setitem__)
        return [found[index] for index in range(len(prompts))]

    def judge(self, continuations: Sequence[Continuation]) -> list[Any]:
        found: dict[int, Any] = {}
        self._model.judge(continuations, found.__setitem__)
        return [found[index] for index in range(len(continuations))]

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        return self._model.reward(conversations)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(ids)
