"""Curves to plot: any metric over any other, over steps or over dollars."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from art_core.base.errors import ConfigError, unknown

STEP = "step"
Curves = Mapping[str, Mapping[int, float]]
"""Of each key, {step: value}."""


@attrs.frozen
class Curve:
    """A line of a figure."""

    label: str
    xs: list[float]
    ys: list[float]


def curve(run: str, curves: Curves, key: str, x: str = STEP) -> Curve:
    """Return a run's key over x at the steps that have both; ConfigError for an unknown key.

    A sum over the run (`*/cum/*`) keeps its value at steps without one.
    """
    for name in (key, x):
        if name != STEP and name not in curves:
            raise ConfigError(unknown("metric", name, curves, known_as=f"{run} has"))
    values = sorted(curves[key].items()) if key != STEP else [(s, s) for s in sorted(curves[x])]
    pairs = [(at, y) for step, y in values if (at := _at(curves, x, step)) is not None]
    return Curve(f"{run} {key}", [at for at, _ in pairs], [y for _, y in pairs])


def _at(curves: Curves, x: str, step: int) -> float | None:
    if x == STEP:
        return step
    known = curves[x]
    if step in known or "/cum/" not in x:
        return known.get(step)
    before = [s for s in known if s < step]
    return known[max(before)] if before else None
