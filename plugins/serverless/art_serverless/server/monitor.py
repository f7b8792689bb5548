"""Figures for Prometheus: requests, their times, jobs and models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Monitor:
    """Counts requests, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        within = {"registry": self._registry}
        self._requests = Counter(
            "art_requests", "Requests answered.", ["route", "status"], **within
        )
        self._running = Gauge("art_requests_running", "Requests under way.", **within)
        self._seconds = Histogram(
            "art_request_seconds", "Time of a request.", ["route"], buckets=BUCKETS, **within
        )
        self._jobs = Gauge("art_jobs", "Training jobs.", ["state"], **within)
        self._models = Gauge("art_models_awake", "Models that are loaded.", **within)

    @contextmanager
    def request(self, route: str) -> Iterator[Callable[[int], None]]:
        """Time a request; yield a function that takes its status."""
        status = 499
        started = time.perf_counter()

        def finished(code: int) -> None:
            nonlocal status
            status = code

        self._running.inc()
        try:
            yield finished
        finally:
            self._running.dec()
            self._requests.labels(route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)

    def text(self, jobs: Mapping[str, int], awake: int) -> tuple[bytes, str]:
        """Return the figures in Prometheus' form, and its content type."""
        for state in ("queued", "running", "ended", "failed"):
            self._jobs.labels(state).set(jobs.get(state, 0))
        self._models.set(awake)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
