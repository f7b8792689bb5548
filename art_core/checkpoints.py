"""Which checkpoints to keep: the newest, and the best by a metric that the log holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from art_core.errors import ConfigError, unknown
from art_core.metrics.history import read_rows
from art_core.metrics.taxonomy import Taxonomy


@attrs.define
class _Curve:
    offset: int = 0
    values: dict[int, float] = attrs.field(factory=dict)


@attrs.define
class Retention:
    """Chooses checkpoints by a metric, over every row of a log; what was read is not read again."""

    history: Path
    taxonomy: Taxonomy
    _curves: dict[str, _Curve] = attrs.field(factory=dict)
    _seen: set[str] = attrs.field(factory=set)

    def steps_to_keep(self, steps: Sequence[int], metric: str) -> set[int]:
        """Return the newest of the steps and the best one by a metric, under any name it has had.

        A later row of a step replaces an earlier one. Until the metric has been logged at a step
        that still has a checkpoint, all steps are kept. Raises ConfigError when other metrics were
        logged, but none of that name.
        """
        wanted = self.taxonomy.resolve(metric)
        values = self._values(wanted)
        if self._seen and not values and metric != "val/reward":
            raise ConfigError(unknown("metric", metric, self._seen, known_as="logged"))
        scored = {step: values[step] for step in steps if step in values}
        if not scored:
            return set(steps)
        lower = self.taxonomy.direction(wanted) == "lower"
        best = min(scored, key=lambda s: (scored[s] if lower else -scored[s], -s))
        return {best, max(steps)}

    def _values(self, wanted: str) -> dict[int, float]:
        curve = self._curves.setdefault(wanted, _Curve())
        for row, offset in read_rows(self.history, curve.offset):
            curve.offset = offset
            self._seen.update(row.metrics)
            named = self.taxonomy.renamed(row.metrics, foreign=not row.seq)
            for metrics in (named, row.metrics):
                if wanted in metrics:
                    curve.values[row.step] = metrics[wanted]
        return curve.values
