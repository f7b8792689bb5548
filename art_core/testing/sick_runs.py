"""Synthetic logs of runs with a known state: healthy, or with one problem from a step on.

A run has groups of attempts at scenarios of different difficulty; each attempt is right with the
probability that skill and difficulty give. All numbers follow from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import fmean, pstdev
from typing import Any

import attrs

from art_core.checks.curves import RunCurves
from art_core.log.history import MetricsRow
from art_core.metrics.taxonomy import builtin_taxonomy

PROBLEMS = (
    "dead-groups-right",
    "dead-groups-wrong",
    "entropy-collapse",
    "val-apart",
    "length-growth",
    "truncation",
    "clipped-share",
    "engine-mismatch",
    "staleness",
    "no-learning-rate",
    "failing-rollouts",
    "costs-without-gain",
    "one-component",
    "outdated-prices",
)
"""The problems that can be planted; each has the name of the rule that finds it."""
CHANGES = {
    "costs-without-gain",
    "entropy-collapse",
    "length-growth",
    "no-learning-rate",
    "one-component",
    "val-apart",
}
"""Problems that are a change, so that there are steps before them; others may begin at step 1."""
BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
MIN_STEPS, MAX_STEPS, FIRST_ONSET, AFTER_ONSET = 60, 140, 24, 30


@attrs.frozen
class SyntheticRun:
    """The rows of a made-up run, healthy or with a `problem` that was planted at a step."""

    rows: tuple[MetricsRow, ...]
    problem: str | None = None
    onset: int | None = None

    def curves(self, until: float = math.inf) -> RunCurves:
        """Return the curves as a rule reads them, of the rows up to a step."""
        rows = (row for row in self.rows if row.step <= until)
        return RunCurves.of_rows(rows, builtin_taxonomy())

    def lines(self) -> bytes:
        """Return the run's log, as `history.jsonl` has it."""
        return b"".join(row.to_line() for row in self.rows)


@attrs.frozen(kw_only=True)
class _Nature:
    """What stays the same in a run."""

    steps: int
    groups: int
    size: int
    low: float
    scale: float
    skill: float
    gain: float
    spread: float
    entropy: float
    decay: float
    tokens: float
    growth: float
    diff: float
    clipped: float
    stale: float
    rate: float
    schedule: str
    evaluates: int
    scenarios: int
    usd: float
    weight: float
    price_days: int

    @classmethod
    def drawn(cls, random: Random, *, evaluates: bool) -> _Nature:
        return cls(
            steps=random.randint(MIN_STEPS, MAX_STEPS),
            groups=random.choice((4, 8, 16)),
            size=random.choice((4, 8)),
            low=random.choice((0.0, 0.0, -1.0)),
            scale=random.choice((1.0, 1.0, 1.0, 2.0, 10.0)),
            skill=random.uniform(-1.2, -0.4),
            gain=random.uniform(1.4, 2.4),
            spread=random.uniform(0.6, 1.2),
            entropy=random.uniform(0.3, 1.5),
            decay=random.uniform(60, 400),
            tokens=math.exp(random.uniform(4, 8)),
            growth=random.uniform(-0.2, 0.6),
            diff=random.uniform(0.002, 0.05),
            clipped=random.uniform(0, 0.18),
            stale=random.uniform(0, 2.5),
            rate=10 ** random.uniform(-6.5, -4),
            schedule=random.choice(("constant", "linear", "cosine")),
            evaluates=5 if evaluates else random.choice((0, 5, 10)),
            scenarios=random.randint(40, 200),
            usd=10 ** random.uniform(-4, 0),
            weight=random.choice((0.0, random.uniform(0.3, 1.0))),
            price_days=random.choice((-1, random.randint(0, 55))),
        )


def healthy_run(seed: int) -> SyntheticRun:
    """Return a run that learns until its end."""
    random = Random(f"healthy {seed}")
    nature = _Nature.drawn(random, evaluates=False)
    return SyntheticRun(tuple(_rows(random, nature, None, nature.steps + 1)))


def sick_run(problem: str, seed: int) -> SyntheticRun:
    """Return a run that has a problem from its onset to its end."""
    random = Random(f"{problem} {seed}")
    nature = _Nature.drawn(random, evaluates=problem == "val-apart")
    first = FIRST_ONSET if problem in CHANGES else 1
    onset = random.randint(first, nature.steps - AFTER_ONSET)
    return SyntheticRun(tuple(_rows(random, nature, problem, onset)), problem, onset)


def _rows(random: Random, nature: _Nature, problem: str | None, onset: int) -> Iterator[MetricsRow]:
    split_rows: list[tuple[int, str, Mapping[str, float]]] = []
    for step in range(1, nature.steps + 1):
        ill = problem if step >= onset else None
        age = max(0, step - onset + 1) if problem else 0
        split_rows.append((step, "train", _train(random, nature, step, ill, age)))
        if nature.evaluates and step % nature.evaluates == 0:
            split_rows.append((step, "val", _val(random, nature, step, ill, age)))
    for seq, (step, split, metrics) in enumerate(split_rows, 1):
        old = problem == "outdated-prices" and step >= onset
        days = 100 if old else nature.price_days
        bought = (_receipt(metrics["costs/all"], days),) if split == "train" and days >= 0 else ()
        yield _row(seq, step, split, metrics, bought)


def _receipt(usd: float, days: int) -> dict[str, Any]:
    """Return the receipt of a judge that has half of the dollars, at prices of some age."""
    as_of = (BEGINS - timedelta(days=days)).date().isoformat()
    return {
        "leaf": "costs/train/judge",
        "item": "judge",
        "usd": usd / 2,
        "rates": {"as_of": as_of, "source": "made up"},
    }


def _row(
    seq: int,
    step: int,
    split: str,
    metrics: Mapping[str, float],
    receipts: tuple[dict[str, Any], ...],
) -> MetricsRow:
    return MetricsRow(
        seq=seq,
        attempt=1,
        step=step,
        split=split,
        recorded_at=BEGINS + timedelta(minutes=seq),
        metrics=dict(metrics),
        receipts=receipts,
    )


_STALLS = {"entropy-collapse", "length-growth", "costs-without-gain", "no-learning-rate"}
"""Problems from whose onset on skill stays the same."""


def _skill(nature: _Nature, step: int, ill: str | None, age: int) -> float:
    healthy = step - age if ill in _STALLS or ill == "val-apart" else step
    shift = {"dead-groups-right": 9.0, "dead-groups-wrong": -9.0}.get(ill or "", 0.0)
    return nature.skill + nature.gain * math.pow(healthy / nature.steps, 0.7) + shift


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _ramp(age: int, steps: float, top: float) -> float:
    """Return a factor that grows from 1 to `top` within some steps."""
    return math.pow(top, min(1.0, age / steps))


def _train(
    random: Random, nature: _Nature, step: int, ill: str | None, age: int
) -> dict[str, float]:
    skill = _skill(nature, step, ill, age)
    if ill == "val-apart":  # the reward is hacked
        skill += 3.0 * min(1.0, age / 18)
    groups = [
        [float(random.random() < _sigmoid(skill - difficulty)) for _ in range(nature.size)]
        for difficulty in (random.gauss(0, nature.spread) for _ in range(nature.groups))
    ]
    count = nature.groups * nature.size
    tokens = nature.tokens * (1 + nature.growth * step / nature.steps)
    tokens *= random.lognormvariate(0, 0.08)
    tokens *= _ramp(age, 14, 2.6) if ill == "length-growth" else 1
    usd = nature.usd * (0.3 + tokens / nature.tokens) * random.lognormvariate(0, 0.05)
    usd *= _ramp(age, 3, 3.0) if ill == "costs-without-gain" else 1
    return {
        "reward/mean": nature.low + nature.scale * fmean(r for g in groups for r in g),
        "reward/std_dev": nature.scale * fmean(map(pstdev, groups)),
        "data/step_num_groups_submitted": float(nature.groups),
        "data/step_num_groups_trainable": float(sum(len(set(group)) > 1 for group in groups)),
        "data/step_num_trajectories": float(count),
        "data/step_actor_tokens": float(round(count * tokens)),
        "costs/all": usd,
        **_parts(random, nature, step, ill, age),
        **_trainer(random, nature, step, ill, age),
        **_shares(random, count, ill),
    }


def _parts(
    random: Random, nature: _Nature, step: int, ill: str | None, age: int
) -> dict[str, float]:
    """Return the two parts of a reward, a right answer and its style, unless it has one part."""
    weight = nature.weight
    if ill == "one-component" and not weight:
        weight = 0.5
    if not weight:
        return {}
    healthy = step - age if ill == "one-component" else step
    shares = {
        "correct": _sigmoid(nature.skill + nature.gain * healthy / nature.steps),
        "style": min(0.97, 0.3 + 0.02 * step),
    }
    count = nature.groups * nature.size
    noisy = {
        name: fmean(float(random.random() < share) for _ in range(count))
        for name, share in shares.items()
    }
    factors = {"correct": 1.0, "style": weight * (100 if ill == "one-component" and age else 1)}
    spreads = {
        f"part_std_dev/{name}": factors[name]
        * math.sqrt(share * (1 - share))
        * random.lognormvariate(0, 0.1)
        for name, share in shares.items()
    }
    return {f"reward/{key}": value for key, value in {**noisy, **spreads}.items()}


def _trainer(
    random: Random, nature: _Nature, step: int, ill: str | None, age: int
) -> dict[str, float]:
    entropy = nature.entropy * math.exp(-step / nature.decay) * random.lognormvariate(0, 0.06)
    entropy *= _ramp(age, 12, 0.05) if ill == "entropy-collapse" else 1
    done = step / (nature.steps + 1)
    part = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    rate = nature.rate * part[nature.schedule]
    return {
        "loss/entropy": entropy,
        "loss/learning_rate": rate * 1e-4 if ill == "no-learning-rate" else rate,
        "loss/grad_norm": random.lognormvariate(-1, 0.4),
        "loss/engine_logprob_diff": (0.2 if ill == "engine-mismatch" else nature.diff)
        * random.lognormvariate(0, 0.2),
        "loss/clipped_token_fraction": min(
            1.0,
            (0.45 if ill == "clipped-share" else nature.clipped) * random.lognormvariate(0, 0.15),
        ),
        "offpolicy/steps_mean": (6.0 if ill == "staleness" else nature.stale)
        * random.uniform(0.8, 1.2),
    }


def _shares(random: Random, count: int, ill: str | None) -> dict[str, float]:
    outage = random.random() < 0.02  # one step, and the next goes well
    failing = 0.45 if ill == "failing-rollouts" else 0.5 if outage else 0.02
    cut = 0.5 if ill == "truncation" else 0.04
    return {
        "reward/exception_rate": sum(random.random() < failing for _ in range(count)) / count,
        "data/step_num_truncated": float(sum(random.random() < cut for _ in range(count))),
    }


def _val(random: Random, nature: _Nature, step: int, ill: str | None, age: int) -> dict[str, float]:
    skill = _skill(nature, step, ill, age) - (0.02 * age if ill == "val-apart" else 0)
    drawn = [
        float(random.random() < _sigmoid(skill - random.gauss(0, nature.spread)))
        for _ in range(nature.scenarios)
    ]
    return {
        "val/reward": nature.low + nature.scale * fmean(drawn),
        "val/reward_std_err": nature.scale * pstdev(drawn) / math.sqrt(nature.scenarios),
    }
