"""The measurements of vLLM's server, read from its Prometheus page, as metrics of a step."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

PREFIX = "vllm:"
RUNNING, WAITING = "num_requests_running", "num_requests_waiting"
CACHE = "kv_cache_usage_perc"
GENERATED, PROMPTED = "generation_tokens_total", "prompt_tokens_total"
QUERIES, HITS = "prefix_cache_queries_total", "prefix_cache_hits_total"
KNOWN = (RUNNING, WAITING, CACHE, GENERATED, PROMPTED, QUERIES, HITS)


def read_page(page: str) -> dict[str, float]:
    """Return the known figures of a Prometheus page, summed over engines."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith(PREFIX):
            continue
        name = line[len(PREFIX) :].partition("{")[0].partition(" ")[0]
        if name in KNOWN:
            found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found


@attrs.define
class StepMetrics:
    """Collects samples of the page and summarizes them once per step.

    Gauges are means over the samples taken while requests ran. The hit rate and the speed are
    differences of counters, the speed over the time in which requests ran.
    """

    _samples: list[Mapping[str, float]] = attrs.field(factory=list)
    _busy_s: float = 0.0
    _last: Mapping[str, float] = attrs.field(factory=dict)
    _since: Mapping[str, float] = attrs.field(factory=dict)

    @property
    def tokens(self) -> float:
        """Tokens that the server has read and written so far."""
        return self._last.get(GENERATED, 0.0) + self._last.get(PROMPTED, 0.0)

    def sample(self, figures: Mapping[str, float], seconds: float) -> None:
        """Add figures that were read `seconds` after the previous ones."""
        if figures.get(GENERATED, 0.0) < self._last.get(GENERATED, 0.0):
            self._since = {}  # a new server, which counts from zero
        ran = figures.get(RUNNING, 0.0) + figures.get(WAITING, 0.0) > 0
        moved = figures.get(GENERATED, 0.0) > self._last.get(GENERATED, 0.0)
        if ran or moved:
            self._busy_s += seconds
        if ran:
            self._samples.append(figures)
        self._last = figures

    def take(self) -> dict[str, float]:
        """Return the metrics since the last call and start anew; empty if nothing ran."""
        samples, busy_s, since = self._samples, self._busy_s, self._since
        self._samples, self._busy_s, self._since = [], 0.0, self._last
        generated = self._last.get(GENERATED, 0.0) - since.get(GENERATED, 0.0)
        queries = self._last.get(QUERIES, 0.0) - since.get(QUERIES, 0.0)
        metrics = {}
        if samples:
            for key, name in (("running", RUNNING), ("waiting", WAITING), ("kv_cache_use", CACHE)):
                metrics[key] = sum(each.get(name, 0.0) for each in samples) / len(samples)
        if queries > 0:
            hits = self._last.get(HITS, 0.0) - since.get(HITS, 0.0)
            metrics["prefix_hit_rate"] = hits / queries
        if busy_s > 0 and generated > 0:
            metrics["generation_tok_per_s"] = generated / busy_s
        return {f"throughput/engine_{key}": value for key, value in metrics.items()}
