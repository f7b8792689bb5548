"""The x-axis of every metric, and which of its values W&B's summary keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from art_core import Plugins

STEP = "training_step"
ENVELOPE = ("seq", "attempt", "split")
_JUDGED = ("reward", "val", "test")


@attrs.define
class Axes:
    """Puts each section on the axis `training_step` before its first value is logged."""

    define_metric: Callable[..., Any]
    _defined: set[str] = attrs.field(factory=set, init=False)

    def define_catalogue(self) -> None:
        """Define the axis, all sections of the catalogue, plugins' too, and what is best of
        rewards and evaluations.
        """
        taxonomy = Plugins.discover().taxonomy()
        for name in (STEP, *ENVELOPE):
            self.define_metric(name, hidden=True)
        self.define_sections(taxonomy.sections)
        for key in taxonomy.specs:
            direction = taxonomy.direction(key)
            if direction and key.startswith(_JUDGED) and not key.endswith("*"):
                best = "last,max" if direction == "higher" else "last,min"
                self.define_metric(key, step_metric=STEP, summary=best)

    def define_sections(self, names: Iterable[str]) -> None:
        """Define sections, or those of keys, that are not yet; a run's own split is one too."""
        new = {name.partition("/")[0] for name in names} - self._defined
        for section in sorted(new):
            self.define_metric(f"{section}/*", step_metric=STEP)
        self._defined |= new
