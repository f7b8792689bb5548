"""Per-turn rewards, parts of rewards and functions of one's own become advantages of turns."""

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.base.errors import ConfigError
from art_core.rl.batch import training_batch
from art_core.rl.credit import Credit, step_credit


def choice(prompt, completion):
    return {
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "stop",
        "prompt_token_ids": prompt,
        "token_ids": completion,
        "logprobs": {"content": [{"logprob": -1.0} for _ in completion]},
    }


def attempt(reward, *choices, **more):
    return art.Trajectory(messages_and_choices=list(choices), reward=reward, **more)


def batch(*groups, **options):
    return training_batch([art.TrajectoryGroup(g) for g in groups], art.TrainConfig.of(**options))


def credited(*groups, **options):
    made = [art.TrajectoryGroup(group) for group in groups]
    return step_credit(made, art.TrainConfig.of(**options))


def turns(reward, *turn_rewards, **more):
    """An attempt of as many turns as it has turn rewards."""
    said = [choice([1], [2]) for _ in turn_rewards]
    return attempt(reward, *said, turn_rewards=list(turn_rewards), **more)


def test_without_rewards_of_turns_an_attempt_has_one_advantage():
    assert credited([turns(0.0), turns(2.0)]) == [[Credit(-1.0), Credit(1.0)]]
    zeros = credited([turns(0.0, 0.0, 0.0), turns(2.0, 0.0)])
    assert zeros == [[Credit(-1.0), Credit(1.0)]]


def test_a_turn_is_credited_for_its_own_reward_and_for_later_ones():
    """Turn 0 earned 1 and 0, a mean of 0.5; turn 1 earned 0 and 4, a mean of 2."""
    (first, second) = credited([turns(0.0, 1.0, 0.0), turns(0.0, 0.0, 4.0)], discount=0.5)[0]
    assert first.turns == (0.5 + 0.5 * -2.0, -2.0)
    assert second.turns == (-0.5 + 0.5 * 2.0, 2.0)
    assert (first.attempt, second.attempt) == (-0.5, 0.5)


def test_the_reward_of_the_attempt_counts_at_its_last_turn():
    (lost, won) = credited([turns(0.0, 0, 0, 0), turns(1.0, 0, 0, 0)], discount=0.5)[0]
    assert lost.turns == (-0.125, -0.25, -0.5)
    assert won.turns == (0.125, 0.25, 0.5)


def test_a_turn_that_only_one_attempt_has_is_compared_with_nothing():
    short, long = credited([turns(0.0, 1.0), turns(0.0, 0.0, 9.0)])[0]
    assert short.turns == (0.5,)
    assert long.turns == (-0.5, 0.0)


def test_a_group_whose_totals_are_equal_teaches_by_its_turns():
    made = batch([turns(0.0, 1.0, 0.0), turns(0.0, 0.0, 1.0)], discount=0.0)
    assert [s.advantage for s in made.sequences] == [0.5, -0.5, -0.5, 0.5]
    assert made.metrics["data/step_num_groups_trainable"] == 1.0
    assert made.metrics["train/num_groups_trainable"] == 1.0


def test_tokens_have_the_advantage_of_their_turn():
    """The second turn continues the sequence of the first."""
    good = attempt(0.0, choice([1], [2, 3]), choice([1, 2, 3, 9], [4]), turn_rewards=[2.0, 0.0])
    bad = attempt(0.0, choice([1], [5]), choice([1, 5, 9], [6]), turn_rewards=[0.0, 4.0])
    first, second = batch([good, bad], discount=0.5).sequences
    assert first.advantages == first.token_advantages == (0.0, 0.0, 0.0, 0.0, -2.0)
    assert second.advantages == (0.0, 0.0, 0.0, 2.0)
    assert (first.advantage, second.advantage) == (-2.0 / 3, 1.0)
    one = batch([attempt(0.0, choice([1], [2])), attempt(1.0, choice([1], [3]))]).sequences[0]
    assert one.token_advantages is None
    assert one.advantages == (-0.5, -0.5)


def test_other_conversations_have_the_advantage_of_the_first_turn():
    aside = art.History(messages_and_choices=[choice([9], [8])])
    helped = turns(0.0, 3.0, additional_histories=[aside])
    of_helped = batch([helped, turns(0.0, 1.0)]).sequences[:2]
    assert [s.advantages for s in of_helped] == [(0.0, 1.0), (1.0, 1.0)]


def test_a_spread_of_turns_is_divided_like_one_of_attempts():
    group = [turns(0.0, 0.0), turns(0.0, 4.0)]
    assert [c.turns for c in credited(group, scale_rewards="group")[0]] == [(-1.0,), (1.0,)]
    assert [c.turns for c in credited(group, advantage_baseline="rloo")[0]] == [(-4.0,), (4.0,)]
    other = [turns(0.0, 2.0), turns(0.0, 2.0)]
    of_batch = credited(group, other, scale_rewards="batch")
    assert of_batch[0][1].turns == (2.0 / math.sqrt(2.0),)
    assert of_batch[1] == [Credit(0.0), Credit(0.0)]


def test_the_balance_weakens_what_is_left_in_the_end():
    (good, bad) = credited([turns(0.0, 3.0, -5.0), turns(0.0, 0, 0)], advantage_balance=0.5)[0]
    assert good.turns == (-0.5, -1.25)
    assert bad.turns == (1.0, 2.5)


lengths = st.lists(st.integers(1, 4), min_size=1, max_size=5)
numbers = st.integers(-8, 8).map(float)


@st.composite
def attempts(draw):
    return [(draw(numbers), draw(st.lists(numbers, min_size=n, max_size=n))) for n in draw(lengths)]


def oracle(group, discount):
    """The definition, written out term by term."""
    mean_reward = sum(reward for reward, _ in group) / len(group)
    found = []
    for reward, own in group:
        row = []
        for k in range(len(own)):
            total = discount ** (len(own) - 1 - k) * (reward - mean_reward)
            for j in range(k, len(own)):
                there = [other[j] for _, other in group if len(other) > j]
                total += discount ** (j - k) * (own[j] - sum(there) / len(there))
            row.append(total)
        found.append(row)
    return found


@given(attempts(), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_advantages_are_those_of_the_definition(group, discount):
    (found,) = credited([turns(reward, *own) for reward, own in group], discount=discount)
    for credit, (_, own), expected in zip(found, group, oracle(group, discount), strict=True):
        got = credit.turns or (credit.attempt,) * len(own)
        assert got == pytest.approx(expected, abs=1e-9)


def test_each_part_of_a_reward_is_divided_by_its_own_std():
    """Worked by hand: correct is 0 0 1 1 with a std of 0.5, format 0 2 2 4 with one of sqrt 2."""
    group = [
        attempt(0.0, metrics={"correct": correct, "format": form})
        for correct, form in [(False, 0), (False, 2), (True, 2), (True, 4)]
    ]
    (found,) = credited(group, reward_weights={"correct": 1.0, "format": 0.5})
    by_hand = [-1 - 0.5 * math.sqrt(2), -1.0, 1.0, 1 + 0.5 * math.sqrt(2)]
    assert [c.attempt for c in found] == pytest.approx(by_hand)
    whole = {"correct": 1.0, "format": 0.5}
    (plain,) = credited(group, reward_weights=whole, reward_scales={"format": "none"})
    assert [c.attempt for c in plain] == pytest.approx([-2.0, -1.0, 1.0, 2.0])


def test_different_rewards_keep_different_advantages():
    """(0, 1), (0, 2): summed and then divided they would be the same (GDPO, section 2)."""
    options = {"reward_weights": {"a": 1.0, "b": 1.0}}

    def highest(*pairs):
        group = [attempt(0.0, metrics={"a": a, "b": b}) for a, b in pairs]
        return max(c.attempt for c in credited(group, **options)[0])

    assert highest((0, 0), (1, 0)) == pytest.approx(1.0)
    assert highest((0, 0), (1, 1)) == pytest.approx(2.0)


@pytest.mark.parametrize(("scale", "of"), [("batch", "both"), ("group", "each"), (True, "each")])
def test_the_sum_of_the_parts_is_divided_by_its_std_if_asked(scale, of):
    first = [attempt(r, metrics={"a": 0.0}) for r in (0.0, 2.0)]
    second = [attempt(r, metrics={"a": r}) for r in (0.0, 1.0)]
    weights = {"reward": 1.0, "a": 3.0}
    found = credited(first, second, reward_weights=weights, scale_rewards=scale)
    root = math.sqrt((1 + 16) / 2)
    wanted = {"both": [-1 / root, 1 / root, -4 / root, 4 / root], "each": [-1, 1, -1, 1]}[of]
    assert [c.attempt for group in found for c in group] == pytest.approx(wanted)
    flat = [attempt(1.0, metrics={"a": 0.0})] * 2
    assert credited(flat, reward_weights={"a": 1.0}, scale_rewards=scale) == [[Credit(0.0)] * 2]


@pytest.mark.parametrize("value", [None, "many", math.nan])
def test_a_part_that_an_attempt_lacks_is_named_with_those_that_it_has(value):
    metrics = {"correct": 1} if value is None else {"correct": 1, "format": value}
    with pytest.raises(ConfigError, match="'format', and an attempt has format=.*: correct"):
        credited([attempt(0.0, metrics=metrics)] * 2, reward_weights={"format": 1.0})
    with pytest.raises(ConfigError, match="the metrics: none"):
        credited([attempt(0.0)], reward_weights={"format": 1.0})


def test_wrong_rewards_of_turns_end_the_step_before_it_begins():
    two = [choice([1], [2]), choice([1], [2])]
    with pytest.raises(ConfigError, match="has 1 rewards, and the conversation 2 choices. Give"):
        batch([attempt(1.0, *two, turn_rewards=[1.0]), attempt(0.0, *two)])
    with pytest.raises(ConfigError, match="rewards that are not finite"):
        batch([attempt(1.0, *two, turn_rewards=[math.inf, 0.0]), attempt(0.0, *two)])


def ranks(trajectories):
    order = sorted(t.reward for t in trajectories)
    return [order.index(t.reward) - (len(order) - 1) / 2 for t in trajectories]


def by_turn(trajectories):
    return [[float(k) for k in range(t.num_turns())] for t in trajectories]


def spec(function):
    return art.AdvantageSpec(name="mine", create=lambda: function)


def test_a_function_of_ones_own_gives_the_advantages(tmp_path, monkeypatch):
    group = [attempt(9.0), attempt(-2.0), attempt(1.0)]
    (tmp_path / "my_ranks.py").write_text(inspect.getsource(ranks))
    monkeypatch.syspath_prepend(str(tmp_path))
    path = "my_ranks:ranks"
    wanted = [[Credit(1.0), Credit(-1.0), Credit(0.0)]]
    assert credited(group, advantage_fn=spec(ranks)) == wanted
    assert credited(group, advantage_fn=path, advantage_balance=1.0) == [
        [Credit(1.0), Credit(-0.0), Credit(0.0)]
    ]


def test_a_function_may_give_one_advantage_for_each_turn():
    group = [turns(0.0, 0, 0), turns(0.0, 0), attempt(0.0)]
    wanted = [Credit(0.0, (0.0, 1.0)), Credit(0.0, (0.0,)), Credit(0.0, ())]
    assert credited(group, advantage_fn=spec(by_turn)) == [wanted]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([1.0], "'mine' returned 1 advantages for a group of 2 attempts"),
        (3.0, "'mine' returned 1 advantages for a group of 2"),
        ([1.0, math.nan], "'mine' returned nan, where finite numbers"),
        ([1.0, "more"], "'mine' returned 'more', where finite numbers"),
        ([[1.0], [1.0, 2.0]], "2 advantages for the turns of an attempt with 1 choices"),
    ],
)
def test_what_a_function_returns_is_checked(answer, told):
    with pytest.raises(ConfigError, match=told):
        credited([turns(0.0, 0), turns(0.0, 0)], advantage_fn=spec(lambda _: answer))


def test_what_is_no_function_is_refused():
    with pytest.raises(ConfigError, match="'mine' is no function: 3"):
        credited([attempt(0.0)], advantage_fn=spec(3))
    with pytest.raises(ConfigError, match="function for advantages 'os:nothing' can't be imported"):
        credited([attempt(0.0)], advantage_fn="os:nothing")


def for_critic(*attempts, **options):
    group = art.TrajectoryGroup(attempts)
    config = art.TrainConfig(advantage_baseline="value", **options)
    return training_batch([group], config, critic=True)


def test_a_critic_is_given_the_rewards_of_turns_at_their_last_tokens():
    played = attempt(
        1.0, choice([1], [2, 3]), choice([1, 2, 3, 9], [4, 5]), turn_rewards=[0.5, 0.25]
    )
    made = for_critic(played)
    (sequence,) = made.sequences
    assert sequence.rewards == (0.0, 0.0, 0.5, 0.0, 0.0, 1.25)
    assert (sequence.advantage, sequence.continues) == (0.0, False)
    assert made.metrics["data/step_num_groups_trainable"] == 1.0


def test_a_critic_follows_a_conversation_whose_prefix_broke():
    broken = attempt(1.0, choice([1], [2]), choice([7], [8]))
    aside = art.History(messages_and_choices=[choice([3], []), choice([3], [4])])
    helped = attempt(2.0, choice([5], [6]), additional_histories=[aside, art.History()])
    found = for_critic(broken, helped).sequences
    assert [s.continues for s in found] == [False, True, False, False]
    assert [s.rewards[-1] for s in found] == [0.0, 1.0, 2.0, 2.0]


def test_a_critic_is_refused_where_none_is_trained():
    with pytest.raises(ConfigError, match="a critic, which only backend 'local' trains. Use an"):
        batch([attempt(1.0, choice([1], [2]))], advantage_baseline="value")
