"""What Prometheus may ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from puyulm.engine.engine import Engine
    from puyulm.engine.request import Request

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters and histograms of one server; nothing is shared between servers of a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._responses = Counter(
            "puyu_http_responses", "Responses by path and status.", ("path", "status"), registry=self.registry
        )
        self._requests = Counter(
            "puyu_requests", "Sequences by how they ended.", ("finish_reason",), registry=self.registry
        )
        self._first = self._histogram("puyu_time_to_first_token_seconds", "From arrival to the first token.", _FIRST)
        self._queue = self._histogram("puyu_queue_seconds", "From arrival to admission.", _FIRST)
        self._between = self._histogram("puyu_inter_token_seconds", "Mean time between an answer's tokens.", _BETWEEN)
        self._whole = self._histogram("puyu_request_seconds", "From arrival to the last token.", _WHOLE)

    def watch(self, engine: Engine) -> None:
        """Reports what an engine counts itself."""
        self.registry.register(_EngineCollector(engine))

    def responded(self, path: str, status: int) -> None:
        """Counts a response of a known path."""
        self._responses.labels(path, str(status)).inc()

    def finished(self, request: Request) -> None:
        """Counts a sequence that has ended, in whatever way."""
        reason, times = request.finish_reason or "aborted", request.times
        self._requests.labels(reason).inc()
        if times.admitted is not None:
            self._queue.observe(times.admitted - times.submitted)
        if times.first_token is not None:
            self._first.observe(times.first_token - times.submitted)
        if times.finished is not None and reason in ("stop", "length"):
            self._whole.observe(times.finished - times.submitted)
            if times.first_token is not None and request.answer_length > 1:
                self._between.observe((times.finished - times.first_token) / (request.answer_length - 1))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, says, buckets=buckets, registry=self.registry)


class _EngineCollector(Collector):
    """Reads an engine when it is asked; plain numbers, so that its thread need not be disturbed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        scheduler, pool, counters = engine.scheduler, engine.scheduler.pool, engine.counters
        for name, says, value in (
            ("puyu_requests_running", "Sequences that are being worked on.", len(scheduler.running)),
            ("puyu_requests_waiting", "Sequences in the queue.", len(scheduler.waiting)),
            ("puyu_cache_blocks", "Blocks of the key/value cache.", pool.num_blocks),
            ("puyu_cache_blocks_held", "Blocks that sequences hold.", pool.held),
            ("puyu_cache_blocks_kept", "Free blocks whose contents may be taken up again.", pool.kept),
            ("puyu_cache_usage", "Share of the key/value cache that is held, 0 to 1.", pool.held / pool.num_blocks),
        ):
            yield GaugeMetricFamily(name, says, value=value)
        for name, says, value in (
            ("puyu_steps", "Forward passes.", counters.steps),
            ("puyu_prompt_tokens", "Prompt tokens of finished sequences.", counters.prompt_tokens),
            ("puyu_cached_tokens", "Prompt tokens found in the prefix cache.", counters.cached_tokens),
            ("puyu_generated_tokens", "Tokens of answers.", counters.new_tokens),
            ("puyu_proposed_tokens", "Tokens guessed ahead.", counters.proposed),
            ("puyu_accepted_tokens", "Guessed tokens that were right.", counters.accepted),
            ("puyu_preemptions", "Sequences that had to give their blocks back.", scheduler.preemptions),
        ):
            yield CounterMetricFamily(name, says, value=value)
