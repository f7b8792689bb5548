"""A log of a resumed run, and what its current line has, worked out by hand.

The first attempt trains steps 1 to 4, each in two rows, and evaluates step 2. The second evaluates
step 2 again, trains step 3 again, and evaluates step 1 last.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import art_core as art

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_ROWS = [
    (attempt, step, split, metrics)
    for attempt, steps in ((1, (1, 2, 3, 4)), (2, (3,)))
    for step in steps
    for split, metrics in (
        ("train", {"reward/mean": 0.125 * step / attempt**2, "costs/all": 1.0, "wall": 40.0}),
        ("train", {"loss/train": 0.5 / step, "wall": 20.0 / attempt}),
    )
]
_FIRST, _AGAIN = _ROWS[:8], _ROWS[8:]
_SUMS = (1, 1, 2, 2, 2, 3, 3, 4, 4, 4.5, 5.5, 5.5, 5.75)

CURVES = {
    "reward/mean": {1: 0.125, 2: 0.25, 3: 0.09375},
    "loss/train": {1: 0.5, 2: 0.25, 3: 0.5 / 3},
    "val/reward": {1: 0.75, 2: 0.375},
    "time/step_wall_s": {1: 60.0, 2: 60.0, 3: 50.0},
    "costs/all": {1: 1.25, 2: 1.5, 3: 2.0, 4: 1.0},
    "costs/cum/all": {1: 1.0, 2: 2.0, 3: 5.75},
}
TRAINED = {1, 2, 3}


def rows() -> list[art.MetricsRow]:
    """Return the rows, in the order of the log."""
    given = [
        *_FIRST[:4],
        (1, 2, "val", {"val/reward": 0.5}),
        *_FIRST[4:],
        (2, 2, "val", {"val/reward": 0.375, "costs/all": 0.5}),
        *_AGAIN,
        (2, 1, "val", {"val/reward": 0.75, "costs/all": 0.25}),
    ]
    return [
        art.MetricsRow(
            seq=seq,
            attempt=attempt,
            step=step,
            split=split,
            recorded_at=WHEN + timedelta(minutes=seq),
            metrics={
                "time/step_wall_s" if key == "wall" else key: value
                for key, value in metrics.items()
            }
            | {"costs/cum/all": float(spent)},
        )
        for seq, ((attempt, step, split, metrics), spent) in enumerate(
            zip(given, _SUMS, strict=True), 1
        )
    ]
