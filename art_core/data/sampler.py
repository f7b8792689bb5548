"""Chooses the scenarios of a step by what they are expected to teach for their cost.

What is known of a scenario is read from the run's files of trajectories, so it is in the log, and a
run that resumes draws the same scenarios: a draw depends on the seed, the step and those files.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs
import orjson

from art_core.base.errors import ConfigError, RolloutError
from art_core.base.numbers import has_spread, number_or_none, text_of
from art_core.data.dataset import scenario_id
from art_core.data.gather import gather_trajectory_groups
from art_core.data.store import trajectory_folder
from art_core.data.trajectory import RolloutResult, TrajectoryGroup

STRENGTH = 2.0
"""How many attempts the prior of a scenario counts as: its mean is that of all scenarios."""


@attrs.frozen
class Seen:
    """A group that was tried: its scenario, the rewards, and the tokens of all attempts."""

    scenario: str
    rewards: tuple[float, ...]
    tokens: float = 0.0
    attempts: int = 0


@attrs.define
class _Belief:
    """Discounted counts of a scenario: of attempts that succeeded or not, of attempts that differ
    from another or not, and of tokens.
    """

    wins: float = 0.0
    losses: float = 0.0
    differ: float = 0.0
    agree: float = 0.0
    tokens: float = 0.0
    attempts: float = 0.0

    def add(self, seen: Seen, weight: float, low: float, high: float) -> None:
        """Count a group. Rewards are scaled to [0, 1] by the lowest and the highest of the run."""
        rewards = [(reward - low) / (high - low) for reward in seen.rewards]
        self.tokens += weight * seen.tokens
        self.attempts += weight * seen.attempts
        if not rewards:
            return
        mean, size = sum(rewards) / len(rewards), len(rewards)
        self.wins += weight * size * mean
        self.losses += weight * size * (1 - mean)
        if size > 1:
            # of two attempts at random: the mean squared difference, twice the variance
            squares = sum((reward - mean) ** 2 for reward in rewards) / (size - 1)
            share = min(1.0, 2 * squares)
            self.differ += weight * (size - 1) * share
            self.agree += weight * (size - 1) * (1 - share)


@attrs.define
class Beliefs:
    """What is known of each scenario, in the order of the pool."""

    scenarios: Sequence[str]
    band: tuple[float, float]
    seen: list[tuple[float, Seen]] = attrs.field(factory=list)
    """Groups with their weights."""

    def draw(
        self, chance: random.Random, count: int, without: Collection[str] = ()
    ) -> list[tuple[str, bool]]:
        """Draw the scenarios with the most signal for their cost: of each, its chance that two
        attempts differ is drawn from its posterior (Thompson sampling), over tokens of an attempt.

        Scenarios whose drawn success rate is outside of the band come last. Of each it is stated
        whether it differs as often as the mean of the pool.
        """
        found, pool = self._found()
        prior = (pool.differ + 1) / (pool.differ + pool.agree + 2)
        cost = pool.tokens / pool.attempts if pool.tokens else 1.0
        low, high = self.band
        ranked = []
        for name in self.scenarios:
            own = found.get(name, _Belief())
            rate = chance.betavariate(1 + own.wins, 1 + own.losses)
            differ = chance.betavariate(
                STRENGTH * prior + own.differ, STRENGTH * (1 - prior) + own.agree
            )
            tokens = (STRENGTH * cost + own.tokens) / (STRENGTH + own.attempts)
            ranked.append((low <= rate <= high, differ / (tokens or cost), name, differ >= prior))
        kept = [each for each in ranked if each[2] not in without]
        kept.sort(key=lambda each: each[:2], reverse=True)
        return [(name, promising) for _, _, name, promising in kept[:count]]

    def _found(self) -> tuple[dict[str, _Belief], _Belief]:
        rewards = [reward for _, seen in self.seen for reward in seen.rewards]
        low, high = min([0.0, *rewards]), max([1.0, *rewards])
        known, pool = set(self.scenarios), _Belief()
        found: dict[str, _Belief] = {}
        for weight, seen in self.seen:
            if seen.scenario in known:
                found.setdefault(seen.scenario, _Belief()).add(seen, weight, low, high)
                pool.add(seen, weight, low, high)
        return found, pool


@attrs.define(eq=False, kw_only=True)
class ScenarioSampler:
    """Chooses the scenarios of each step by expected signal per token, and gathers their groups.

    - `scenarios`, `run_dir`: the pool, and the directory of the run (`model.run_dir`).
    - `groups`, `attempts`: groups of a step, and attempts of each.
    - `first`: a group begins with so many attempts and grows by as many, up to `attempts`, while
      all agree and its scenario is worth it; by default it begins with all.
    - `most`: groups of a step, those included that stand in for groups without spread (dynamic
      sampling, DAPO, arXiv 2503.14476, section 3.2); by default twice `groups`.
    - `band`: success rates, as shares of the highest reward, that are preferred: (0.1, 0.9).
    - `discount`: by which a group counts less with each step since, as the model changes. 0.97
      forgets half in 23 steps.
    - `seed`: of the draws.
    """

    scenarios: Sequence[Any]
    run_dir: Path = attrs.field(converter=Path)
    groups: int = 8
    attempts: int = 8
    first: int | None = None
    most: int | None = None
    band: tuple[float, float] = (0.0, 1.0)
    discount: float = 0.97
    seed: int = 0
    _by_id: dict[str, Any] = attrs.field(init=False, repr=False)
    _read: dict[Path, tuple[tuple[int, int], list[Seen]]] = attrs.field(
        factory=dict, init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        self._by_id = {scenario_id(scenario): scenario for scenario in self.scenarios}
        if not self._by_id or len(self._by_id) < len(self.scenarios):
            raise ConfigError(
                "a sampler needs scenarios with ids of their own, got "
                f"{len(self.scenarios)} with {len(self._by_id)} ids",
                "Give each its own `id`.",
            )
        counts = (self.groups, self.attempts, self.first or 1, self.most or self.groups)
        if min(counts) < 1 or counts[2] > self.attempts or counts[3] < self.groups:
            raise ConfigError(
                "a sampler needs 1 <= first <= attempts and 1 <= groups <= most, got "
                f"first={self.first}, attempts={self.attempts}, groups={self.groups}, "
                f"most={self.most}"
            )
        low, high = self.band
        if not (0 <= low < high <= 1 and 0 < self.discount <= 1):
            raise ConfigError(
                "band must be two shares, the lower one first, and discount above 0 and at most "
                f"1, got band={self.band}, discount={self.discount}"
            )

    async def gather(
        self, step: int, rollout: Callable[[Any], Awaitable[RolloutResult]], **options: Any
    ) -> list[TrajectoryGroup]:
        """Return the groups of the step after `step`: those with spread, and those without.

        `rollout(scenario)` makes an attempt. Options are those of `gather_trajectory_groups`; with
        `after_each`, which sees a group once, groups do not grow.
        """
        if "after_each" in options and self.first not in (None, self.attempts):
            raise ConfigError(
                "after_each compares the attempts of a whole group, and `first` lets it grow",
                "Leave one of them out.",
            )
        chance, beliefs = random.Random(f"{self.seed} {step}"), self.beliefs(step)
        done: list[TrajectoryGroup] = []
        tried: set[str] = set()
        missing, room = self.groups, self.most or 2 * self.groups
        while missing > 0 and (drawn := beliefs.draw(chance, min(missing, room), tried)):
            found = await self._grown(drawn, rollout, options, again=bool(done))
            tried.update(name for name, _ in drawn)
            beliefs.seen += [(1.0, _seen(group)) for group in found]
            done += found
            taught = {_name(group) for group in found if has_spread(group.rewards)}
            missing, room = missing - len(taught), room - len(drawn)
        return done

    def beliefs(self, step: int) -> Beliefs:
        """Return what the run's groups of the steps up to `step` show."""
        seen: list[tuple[float, Seen]] = []
        for file in sorted(trajectory_folder(self.run_dir, "train").glob("*.jsonl")):
            if file.stem.isdecimal() and int(file.stem) <= step:
                weight = self.discount ** (step - int(file.stem))
                seen += [(weight, each) for each in self._groups_in(file)]
        return Beliefs(list(self._by_id), self.band, seen)

    def _groups_in(self, file: Path) -> list[Seen]:
        stat = file.stat()
        version = stat.st_mtime_ns, stat.st_size
        if file not in self._read or self._read[file][0] != version:
            self._read[file] = version, _stored(file)
        return self._read[file][1]

    async def _grown(
        self,
        drawn: Sequence[tuple[str, bool]],
        rollout: Callable[[Any], Awaitable[RolloutResult]],
        options: Mapping[str, Any],
        *,
        again: bool,
    ) -> list[TrajectoryGroup]:
        """Gather a group for each scenario; those that agree and promise a spread grow. If others
        of the step are there already (`again`), all of these may fail.
        """
        size = self.first or self.attempts
        growing, done = dict(drawn), list[TrajectoryGroup]()
        for begun in range(0, self.attempts, size):
            rest = min(size, self.attempts - begun)
            try:
                more = await gather_trajectory_groups(
                    [self._group(name, rest, rollout) for name in growing], **options
                )
            except RolloutError as error:
                more = cast("list[TrajectoryGroup]", list(error.groups))
                failed = sum(len(group.failures) for group in more)
                some = failed < rest * len(growing)
                if some or not (again or begun) or options.get("max_exceptions") is not None:
                    raise
            done = _joined(done, more)
            decided = {_name(group) for group in done if has_spread(group.rewards)}
            growing = {n: worth for n, worth in growing.items() if worth and n not in decided}
            if not growing:
                break
        return done

    def _group(
        self, name: str, size: int, rollout: Callable[[Any], Awaitable[RolloutResult]]
    ) -> TrajectoryGroup:
        scenario = self._by_id[name]
        attempts = (rollout(scenario) for _ in range(size))
        return TrajectoryGroup(attempts, metadata={"scenario_id": name})


def _name(group: TrajectoryGroup) -> str:
    return text_of(group.metadata.get("scenario_id"))


def _joined(
    done: Sequence[TrajectoryGroup], more: Sequence[TrajectoryGroup]
) -> list[TrajectoryGroup]:
    """Return groups with later attempts of the same scenario and player added."""
    found = {(_name(group), group.metadata.get("player")): group for group in done}
    for group in more:
        key = _name(group), group.metadata.get("player")
        before = found.get(key)
        found[key] = before.with_results(group.trajectories, group.failures) if before else group
    return list(found.values())


def _seen(group: TrajectoryGroup) -> Seen:
    """Return a group of the step that runs; its tokens count when it is stored."""
    return Seen(_name(group), tuple(group.rewards))


def _stored(file: Path) -> list[Seen]:
    found = []
    with file.open("rb") as lines:
        for line in lines:
            try:
                group = orjson.loads(line)
                name = text_of(group["metadata"]["scenario_id"])
                attempts = group["trajectories"]
                rewards = [_reward(attempt) for attempt in attempts]
                tokens = sum(map(_tokens, attempts))
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # torn, or without what a draw needs
            known = tuple(reward for reward in rewards if reward is not None)
            found.append(Seen(name, known, float(tokens), len(attempts)))
    return found


def _reward(attempt: Mapping[str, Any]) -> float | None:
    reward = number_or_none(attempt["reward"])
    return None if reward is None else reward + sum(attempt.get("turn_rewards", ()))


def _tokens(attempt: Mapping[str, Any]) -> int:
    """Return the tokens of a stored attempt, those of prompts that repeat a turn left out."""
    tokens = 0
    for history in (attempt, *attempt["additional_histories"]):
        for item in history["messages_and_choices"]:
            prompt = item.get("prompt_token_ids") or ()
            tokens += len(prompt["then"] if isinstance(prompt, Mapping) else prompt)
            tokens += len(item.get("token_ids") or ())
    return tokens
