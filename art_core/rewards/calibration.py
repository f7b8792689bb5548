"""Calibrate judges on pairs whose better answer is known, and find the cheapest that agrees."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

import attrs

from art_core.base.errors import ConfigError
from art_core.rewards.judge import Judge, first_wins, judge_of


@attrs.frozen(kw_only=True)
class LabelledPair:
    """Two answers to a question, of which a person preferred `better`."""

    better: str
    worse: str
    question: str = ""


@attrs.frozen(kw_only=True)
class Calibration:
    """How far a judge can be trusted.

    `agreement` is the share of pairs of which it prefers the better answer over both orders, a tie
    counting one half; `consistency` the share of which it prefers the same answer in both orders;
    `repeatability` the share in which a second call gives the same preference; `usd` is the cost of
    one pair in one order, None if the judge has no price.
    """

    judge: Judge
    agreement: float
    consistency: float
    repeatability: float
    usd: float | None


async def calibrate(
    judges: Iterable[object], pairs: Sequence[LabelledPair], *, criteria: str = ""
) -> list[Calibration]:
    """Ask each judge about each pair in both orders, and in the first order twice.

    Returns the calibrations, the most agreeing judge first. Raises ConfigError without pairs, and
    RewardError as `Judge.ask` does.
    """
    if not pairs:
        raise ConfigError("calibration needs labelled pairs")
    found = [await _calibrated(judge_of(judge), pairs, criteria) for judge in judges]
    return sorted(found, key=lambda c: (-c.agreement, -c.consistency))


def cheapest(calibrations: Iterable[Calibration], agreement: float = 0.9) -> Calibration:
    """Return the cheapest judge of known price that agrees in at least that share of the pairs.

    Raises ConfigError when there is none.
    """
    fits = [c for c in calibrations if c.agreement >= agreement and c.usd is not None]
    if not fits:
        raise ConfigError(
            f"no judge of known price agrees in {agreement:.0%} of the pairs",
            "Try others, or sharpen the criteria.",
        )
    return min(fits, key=lambda c: (c.usd or 0.0, -c.agreement))


async def _calibrated(judge: Judge, pairs: Sequence[LabelledPair], criteria: str) -> Calibration:
    before, calls = judge.spent_usd, 3 * len(pairs)
    scores = await asyncio.gather(*(_scores(judge, pair, criteria) for pair in pairs))
    spent = judge.spent_usd - before
    agreed = [_side((there + 1 - back) / 2) for there, back, _ in scores]
    return Calibration(
        judge=judge,
        agreement=math.fsum(agreed) / len(pairs),
        consistency=sum(_side(there) == _side(1 - back) for there, back, _ in scores) / len(pairs),
        repeatability=sum(_side(there) == _side(again) for there, _, again in scores) / len(pairs),
        usd=spent / calls if spent else None,
    )


async def _scores(judge: Judge, pair: LabelledPair, criteria: str) -> tuple[float, float, float]:
    """Return the scores of the better answer first, of the worse first, and of the former again."""
    orders = ((pair.better, pair.worse), (pair.worse, pair.better), (pair.better, pair.worse))
    there, back, again = await asyncio.gather(
        *(first_wins(judge, a, b, pair.question, criteria) for a, b in orders)
    )
    return there, back, again


def _side(score: float) -> float:
    """Return 1 for the first answer, 0 for the second, one half for neither."""
    return 1.0 if score > 0.5 else 0.0 if score < 0.5 else 0.5
