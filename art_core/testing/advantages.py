"""The contract of advantages. Subclass `AdvantageContract`; give `plugin` and `examples`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import ClassVar

import pytest

from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.hooks.host import Plugins
from art_core.rl.advantages import AdvantageSpec
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.rl.credit import Credit, step_credit
from art_core.testing.statements import Contract, Setting

Example = tuple[Sequence[float], Sequence[float]]
"""Rewards of the attempts of a group, of one turn each, and their advantages by hand."""

REWARDS: tuple[Sequence[float], ...] = (
    (0.0, 1.0),
    (0.25, 1.0, 0.0, 0.5, 0.75),
    (-3.0, 2.0, 2.0, 7.0),
    (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
)
EXTREME: tuple[Sequence[float], ...] = (
    (1e12, 1e12 + 1.0, 0.0),
    (1e-9, 0.0, -1e-9),
    (-1e15, 1e15),
)
FLAT: tuple[Sequence[float], ...] = ((0.0, 0.0), (1.0, 1.0, 1.0), (0.1, 0.1, 0.1), (-2.5, -2.5))


class AdvantageContract(Contract):
    """The tests of advantages. Fixture to give: `plugin`, the module or object with
    `art_advantages`.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "examples",
            "worked out by hand: rewards of a group's attempts of one turn, and their advantages",
        ),
        Setting("name", "which advantages are tried, if the plugin offers several"),
        Setting(
            "teaches_without_spread",
            "that attempts with equal rewards may have advantages",
            "advantages of equal rewards were not compared with 0",
        ),
        Setting(
            "ignores_rewards",
            "that an attempt with a higher reward may have a lower advantage",
            "advantages were not compared with the order of the rewards",
        ),
    )
    examples: ClassVar[Sequence[Example]] = ()
    name: ClassVar[str] = ""
    teaches_without_spread: ClassVar[bool] = False
    ignores_rewards: ClassVar[bool] = False

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def offered(self, plugin: object) -> dict[str, AdvantageSpec]:
        """Return what the plugin offers; what is broken raises."""
        plugins = Plugins(strict=True)
        plugins.register(plugin, "contract")
        return plugins.advantages()

    @pytest.fixture
    def spec(self, offered: dict[str, AdvantageSpec]) -> AdvantageSpec:
        """Return the advantages that are tried."""
        if self.name in offered:
            return offered[self.name]
        if self.name or len(offered) != 1:
            pytest.fail(f"give the setting `name`; the plugin offers: {', '.join(offered)}")
        return next(iter(offered.values()))

    def test_it_has_the_hook(self, offered: dict[str, AdvantageSpec]) -> None:
        """`art_advantages`, as the core calls it."""
        assert offered

    def test_it_gives_the_advantages_of_the_examples(self, spec: AdvantageSpec) -> None:
        """An example is needed: else no value would be tested."""
        if not self.examples:
            pytest.fail("no value is tested: give `examples`")
        for rewards, wanted in self.examples:
            assert _of_attempts(spec, _group(rewards)) == pytest.approx(list(wanted))

    def test_each_attempt_has_an_advantage(self, spec: AdvantageSpec) -> None:
        """One number, or one for each of its turns; groups have from none to many attempts."""
        for group in [_group(rewards) for rewards in ((), (1.0,), *REWARDS)]:
            assert len(_credit(spec, group)) == len(group)

    def test_attempts_may_have_several_turns(self, spec: AdvantageSpec) -> None:
        """They differ in the number of turns, and some have rewards of turns."""
        for rewards in REWARDS:
            assert len(_credit(spec, _long_group(rewards))) == len(rewards)

    def test_attempts_may_be_poor_in_data(self, spec: AdvantageSpec) -> None:
        """Without a choice, metrics and metadata, as a rollout may leave them."""
        bare = TrajectoryGroup([Trajectory(reward=reward) for reward in (0.0, 1.0)])
        assert len(_credit(spec, bare)) == 2

    def test_advantages_are_finite(self, spec: AdvantageSpec) -> None:
        """Also those of rewards that are very large, or differ by little."""
        for rewards in EXTREME:
            for credit in _credit(spec, _group(rewards)):
                assert all(abs(value) < 1e38 for value in credit.values), f"{credit}, of {rewards}"

    def test_the_order_of_the_attempts_does_not_matter(self, spec: AdvantageSpec) -> None:
        """Attempts finish in any order."""
        for rewards in REWARDS:
            for make in (_group, _long_group):
                group = make(rewards)
                turned = group.with_trajectories(group.trajectories[::-1])
                found, again = _credit(spec, group), _credit(spec, turned)[::-1]
                assert _flat(again) == pytest.approx(_flat(found)), f"{rewards}, and reversed"

    def test_attempts_with_equal_rewards_have_no_advantage(self, spec: AdvantageSpec) -> None:
        """Nothing is learned from attempts that are as good as each other."""
        if self.teaches_without_spread:
            pytest.skip("teaches_without_spread is stated")
        for rewards in FLAT:
            found = _of_attempts(spec, _group(rewards))
            assert found == [0.0] * len(rewards), f"rewards {rewards}"

    def test_a_better_attempt_has_no_lower_advantage(self, spec: AdvantageSpec) -> None:
        """Among attempts that differ in nothing else."""
        if self.ignores_rewards:
            pytest.skip("ignores_rewards is stated")
        for rewards in REWARDS:
            pairs = sorted(zip(rewards, _of_attempts(spec, _group(rewards)), strict=True))
            for (low, worse), (high, better) in pairwise(pairs):
                assert low == high or worse <= better, f"rewards {low} and {high}"
            assert pairs[0][1] < pairs[-1][1], f"rewards {rewards} have equal advantages"

    def test_trajectories_are_left_as_they_are(self, spec: AdvantageSpec) -> None:
        """They are stored and counted after it."""
        group = _long_group(REWARDS[1])
        before = deepcopy(group.to_dict())
        _credit(spec, group)
        assert group.to_dict() == before

    def test_the_same_group_has_the_same_advantages(self, spec: AdvantageSpec) -> None:
        """After other groups, and in a run that resumes."""
        groups = [_group(rewards) for rewards in REWARDS]
        first = [_credit(spec, group) for group in groups]
        assert [_credit(spec, group) for group in groups[::-1]] == first[::-1]

    def test_a_step_trains_with_it(self, spec: AdvantageSpec) -> None:
        """`advantage_fn` takes its name, and the sequences of the step have its advantages."""
        config = TrainConfig.of({}, {spec.name: spec}, advantage_fn=spec.name)
        batch = training_batch([_group(REWARDS[1])], config)
        assert not batch.empty, f"rewards {REWARDS[1]} teach nothing"


def _credit(spec: AdvantageSpec, group: TrajectoryGroup) -> list[Credit]:
    return step_credit([group], TrainConfig(advantage_fn=spec))[0]


def _of_attempts(spec: AdvantageSpec, group: TrajectoryGroup) -> list[float]:
    return [credit.attempt for credit in _credit(spec, group)]


def _flat(found: Sequence[Credit]) -> list[float]:
    return [value for credit in found for value in credit.values]


def _group(rewards: Sequence[float]) -> TrajectoryGroup:
    return TrajectoryGroup([_attempt(reward, 1) for reward in rewards])


def _long_group(rewards: Sequence[float]) -> TrajectoryGroup:
    made = [_attempt(reward, 1 + place % 3) for place, reward in enumerate(rewards)]
    for trajectory in made[::2]:
        trajectory.turn_rewards = [0.5 * turn for turn in range(trajectory.num_turns())]
    return TrajectoryGroup(made)


def _attempt(reward: float, turns: int) -> Trajectory:
    choice = {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": [1, 2],
        "token_ids": [3],
        "logprobs": {"content": [{"logprob": -0.5}]},
    }
    return Trajectory(messages_and_choices=[choice] * turns, reward=reward)
