"""The evaluations in a run's log, with the intervals of their rewards."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from art_core.evaluation.statistics import LEVEL, clustered
from art_core.forecast.interval import t_quantile
from art_core.log.reader import LoggedRun

_REWARD = "/reward"
_NAMES = ("reward_std_err", "usd_per_attempt", "seconds_per_attempt", "exception_rate")
_SCENARIOS = "data/step_num_scenarios"
_PASS_AT = "pass_at_"


@attrs.frozen(kw_only=True)
class LoggedEvaluation:
    """A reward on a split other than `train`, as it stands on a run's current line.

    `low` and `high` are the ends of the interval of 95 %, clustered by scenario; None if the error
    is not known. `pass_at` maps k to pass@k; `usd` and `seconds` are per attempt, `failed` is the
    share of the attempts that failed. What was not logged is None.
    """

    split: str
    step: int
    reward: float
    low: float | None = None
    high: float | None = None
    scenarios: int | None = None
    pass_at: Mapping[int, float] = attrs.field(factory=dict)
    usd: float | None = None
    seconds: float | None = None
    failed: float | None = None


def read_evaluations(run: LoggedRun) -> list[LoggedEvaluation]:
    """Return a run's evaluations by split and step.

    The interval is that of the logged standard error. If none was logged, it is computed from the
    trajectories that are stored.
    """
    line = run.timeline(lambda key: key.count("/") in (1, 2))
    splits = [k.removesuffix(_REWARD) for k in line.kept_keys() if k.endswith(_REWARD)]
    found = []
    for split in sorted(name for name in splits if "/" not in name and name != "train"):
        start = f"{split}/"
        keys = [key for key in line.kept_keys() if key.startswith(start)]
        curves = {key.removeprefix(start): line.curve(key) for key in keys}
        stored = set(run.steps(split))
        for step, reward in curves["reward"].items():
            at = {name: curve[step] for name, curve in curves.items() if step in curve}
            found.append(_evaluation(run, split, step, reward, at, is_stored=step in stored))
    return found


def _evaluation(
    run: LoggedRun,
    split: str,
    step: int,
    reward: float,
    at: Mapping[str, float],
    *,
    is_stored: bool,
) -> LoggedEvaluation:
    error, usd, seconds, failed = (at.get(name) for name in _NAMES)
    count = int(at.get(_SCENARIOS, 0))
    low = high = None
    if error is not None and count > 1:
        reach = error * t_quantile(0.5 + LEVEL / 2, count - 1)
        low, high = reward - reach, reward + reach
    elif is_stored:
        low, high = _interval(run, split, step)
    passed = {k.removeprefix(_PASS_AT): v for k, v in at.items() if k.startswith(_PASS_AT)}
    return LoggedEvaluation(
        split=split,
        step=step,
        reward=reward,
        low=low,
        high=high,
        scenarios=count or None,
        pass_at={int(k): v for k, v in sorted(passed.items()) if k.isdecimal()},
        usd=usd,
        seconds=seconds,
        failed=failed,
    )


def _interval(run: LoggedRun, split: str, step: int) -> tuple[float | None, float | None]:
    rewards: dict[str, list[float]] = {}
    for number, group in enumerate(run.groups(step, split)):
        name = str(group.metadata.get("scenario_id", number))
        rewards.setdefault(name, []).extend(group.rewards)
    if sum(map(bool, rewards.values())) < 2:
        return None, None
    estimate = clustered(rewards)
    return estimate.low, estimate.high
