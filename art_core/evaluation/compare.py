"""Compare two models on the same scenarios, and stop when it is decided."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError, RolloutError, RolloutFailure
from art_core.base.progress import progress_bar
from art_core.data.account import charging, open_account
from art_core.data.trajectory import Trajectory
from art_core.evaluation.attempts import Rollout, by_id
from art_core.evaluation.evaluate import ModelAt, check_counts, run_attempt
from art_core.evaluation.statistics import LEVEL, Difference, difference


@attrs.frozen(kw_only=True)
class Comparison:
    """Which of two models is better, by the mean difference of their rewards per scenario.

    `pairs` of `planned` scenarios were compared; `left_out` had no reward on one side.
    """

    a: str
    b: str
    difference: Difference
    planned: int
    left_out: int = 0
    usd: float | None = None

    @property
    def better(self) -> str:
        """The name of the better model, or "" if that is not decided."""
        return {"a": self.a, "b": self.b, "": ""}[self.difference.decided]

    @property
    def saved(self) -> float:
        """The share of the planned scenarios that were not needed."""
        return 1 - (self.difference.pairs + self.left_out) / self.planned

    def __str__(self) -> str:
        d = self.difference
        verdict = f"{self.better} is better" if self.better else "not decided"
        saved = f", {self.saved:.0%} of the plan saved" if self.saved > 0 else ""
        cost = "" if self.usd is None else f"; the attempts cost {self.usd:.6f} US dollars"
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return (
            f"{self.a} - {self.b}: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] on {d.pairs} of "
            f"{self.planned} scenarios{left_out}: {verdict}{saved}{cost}"
        )


def paired(
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    *,
    names: tuple[str, str] = ("a", "b"),
    level: float = LEVEL,
) -> Comparison:
    """Compare rewards by scenario that exist already.

    Raises ConfigError, with the difference, unless both have the same scenarios.
    """
    if a.keys() != b.keys():
        raise ConfigError(
            f"{names[0]} and {names[1]} have different scenarios: {_only(a, b, names[0])}; "
            f"{_only(b, a, names[1])}",
            "Evaluate both on the same ones.",
        )
    pairs = [_mean(a[key]) - _mean(b[key]) for key in a if a[key] and b[key]]
    if not pairs:
        raise ConfigError(f"{names[0]} and {names[1]} have no scenario with rewards of both")
    return Comparison(
        a=names[0],
        b=names[1],
        difference=difference(pairs, len(pairs), level),
        planned=len(a),
        left_out=len(a) - len(pairs),
    )


async def compare(
    a: Any,
    b: Any,
    scenarios: Iterable[Any],
    rollout: Rollout,
    *,
    steps: tuple[int | None, int | None] = (None, None),
    repeats: int = 1,
    max_concurrent: int = 32,
    timeout: float | None = None,
    level: float = LEVEL,
    seed: int = 0,
    progress: str | None = "compare",
) -> Comparison:
    """Run both models on scenarios, in an order drawn by `seed`, until one is better.

    `steps` are older steps of the models, for example `(12, 0)` of one model. After each batch of
    scenarios the interval of the mean difference is looked at: it is valid at every look
    (`statistics.difference`), so that stopping early does not raise the error rate above 1 -
    `level`. The cost of the attempts goes into the next row of each model, under `costs/eval`.

    Raises ConfigError for no or doubled scenarios and for counts below 1, RolloutError when no
    scenario gave a reward of both.
    """
    check_counts(repeats=repeats, max_concurrent=max_concurrent)
    asked = by_id(list(scenarios))
    order = list(asked)
    random.Random(seed).shuffle(order)
    pairing = _Pairing(rollout, repeats, timeout, asyncio.Semaphore(max_concurrent))
    sides = [m if s is None else ModelAt(m, s) for m, s in zip((a, b), steps, strict=True)]
    names = [_name(m, s) for m, s in zip((a, b), steps, strict=True)]
    batch = max(1, max_concurrent // (2 * repeats))
    bar = progress_bar(desc=progress, total=len(order), unit="scenario") if progress else None
    try:
        for start in range(0, len(order), batch):
            chosen = [asked[key] for key in order[start : start + batch]]
            await pairing.add(sides, chosen)
            if bar is not None:
                bar.update(len(chosen))
            if pairing.pairs and difference(pairing.pairs, len(order), level).decided:
                break
    finally:
        if bar is not None:
            bar.close()
    if not pairing.pairs:
        raise RolloutError(f"no scenario gave a reward of both {names[0]} and {names[1]}")
    return Comparison(
        a=names[0],
        b=names[1],
        difference=difference(pairing.pairs, len(order), level),
        planned=len(order),
        left_out=pairing.left_out,
        usd=pairing.usd,
    )


@attrs.define
class _Pairing:
    """Runs scenarios on two models, and collects the differences of their mean rewards."""

    rollout: Rollout
    repeats: int
    timeout: float | None
    slots: asyncio.Semaphore
    pairs: list[float] = attrs.field(factory=list)
    left_out: int = 0
    usd: float = 0.0

    async def add(self, sides: Sequence[Any], scenarios: Sequence[Any]) -> None:
        """Run a batch of scenarios on both sides at the same time."""
        found = await asyncio.gather(*(self._rewards(m, s) for s in scenarios for m in sides))
        for first, second in zip(found[::2], found[1::2], strict=True):
            if first and second:
                self.pairs.append(_mean(first) - _mean(second))
            else:
                self.left_out += 1

    async def _rewards(self, model: Any, scenario: Any) -> list[float]:
        account = open_account()
        with charging(account):
            runs = (
                run_attempt(self.rollout, model, scenario, self.timeout, self.slots)
                for _ in range(self.repeats)
            )
            results: list[Trajectory | RolloutFailure] = await asyncio.gather(*runs)
        for call in account.take():
            self.usd += call.quote() or 0.0
            call.book(model.metrics_builder("eval"))
        return [r.total_reward for r in results if isinstance(r, Trajectory)]


def _name(model: Any, step: int | None) -> str:
    return str(model.name) if step is None else f"{model.name}@{step}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _only(some: Mapping[str, Any], others: Mapping[str, Any], name: str) -> str:
    own = sorted(some.keys() - others.keys())
    shown = ", ".join(own[:5]) + (f" and {len(own) - 5} more" if len(own) > 5 else "")
    return f"{len(own)} only in {name}" + (f" ({shown})" if own else "")
