"""What each dollar of a row bought: the parts sum to `costs/all`."""

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

import art_core as art
from art_core.base.errors import RolloutFailure
from art_core.data.account import Account
from art_core.metrics.rollup import RunningTotals
from art_core.metrics.signal import PARTS, teaching, with_signal
from art_core.metrics.summarize import GroupsOfRow
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.rl.config import TrainConfig
from art_core.rl.losses import PRESETS

FAILURE = RolloutFailure(reason="raised", type="ValueError", message="bad")


def choice(prompt, sampled, *, cut=False, tokens=True):
    told = {"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    if cut:
        told["finish_reason"] = "length"
    if tokens:
        told["prompt_token_ids"] = list(prompt)
        told["token_ids"] = list(sampled)
        told["logprobs"] = {"content": [{"logprob": -0.5} for _ in sampled]}
    return told


def attempt(reward=0.0, *, tokens=10, start=0, **more):
    """An attempt of one turn whose prompt and answer have so many tokens together."""
    ids = range(start, start + tokens)
    return art.Trajectory(messages_and_choices=[choice(ids[:2], ids[2:], **more)], reward=reward)


def parts_of(metrics, groups=(), *, split="train", trained=True, config=None, eval_s=0.0, new=None):
    given = GroupsOfRow(groups, groups if new is None else new, (), trained)
    totals = RunningTotals(builtin_taxonomy(), {})
    draft = with_signal(totals.draft(split, metrics), split, given, config, eval_s)
    found = {part: draft.metrics.get(f"signal/{part}") for part in PARTS}
    found = {part: usd for part, usd in found.items() if usd is not None}
    assert all(draft.totals[f"signal/cum/{part}"] == usd for part, usd in found.items())
    if "costs/all" in draft.metrics:
        assert sum(found.values()) == sum(reversed(found.values())) == draft.metrics["costs/all"]
    return found


def near(**parts):
    return pytest.approx({name.replace("__", "/"): usd for name, usd in parts.items()})


def test_a_group_with_spread_learned_and_one_without_is_wasted_by_tokens():
    groups = [
        art.TrajectoryGroup([attempt(0, tokens=10), attempt(1, tokens=20)]),
        art.TrajectoryGroup([attempt(1, tokens=5), attempt(1, tokens=5)]),
    ]
    found = parts_of({"costs/train/tinker_sample": 4.0}, groups)
    assert found == near(learned=3.0, wasted__no_spread=1.0)


def test_training_dollars_are_those_of_what_was_trained():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)]), art.TrajectoryGroup([attempt(1)] * 2)]
    metrics = {"costs/train/tinker_train": 1.0, "costs/train/tinker_sample": 1.0}
    assert parts_of(metrics, groups) == near(learned=1.5, wasted__no_spread=0.5)


def test_the_training_of_nothing_is_wasted_as_its_attempts_were():
    groups = [art.TrajectoryGroup([attempt(1), attempt(1)])]
    assert parts_of({"costs/train/tinker_train": 1.0}, groups) == near(wasted__no_spread=1.0)


def test_device_time_is_of_training_rollouts_and_evaluation_by_their_seconds():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)]), art.TrajectoryGroup([attempt(1)] * 2)]
    metrics = {"costs/gpu": 1.0, "time/step_trainer_s": 5.0, "time/step_actor_s": 4.0}
    assert parts_of(metrics, groups, eval_s=1.0) == near(
        learned=0.7, wasted__no_spread=0.2, evaluation=0.1
    )
    assert parts_of({"costs/gpu": 1.0}, groups) == near(learned=0.5, wasted__no_spread=0.5)


def test_failed_cut_off_and_unreadable_attempts_are_wasted():
    group = art.TrajectoryGroup(
        [attempt(0), attempt(1), attempt(1, cut=True), attempt(1, tokens=False), FAILURE]
    )
    usd = {"costs/train/tinker_sample": 5.0}
    assert parts_of(usd, [group]) == near(
        learned=2.0, wasted__truncated=1.0, wasted__masked=1.0, wasted__failed=1.0
    )
    kept = parts_of(usd, [group], config=TrainConfig(mask_truncated=False))
    assert kept["learned"] == pytest.approx(3.0)


def test_attempts_without_any_tokens_weigh_the_same():
    group = art.TrajectoryGroup([attempt(0, tokens=9), FAILURE])
    blind = art.Trajectory(messages_and_choices=[choice((), (), tokens=False)], reward=1.0)
    assert parts_of({"costs/gpu": 2.0}, [art.TrajectoryGroup([blind, FAILURE])]) == near(
        wasted__masked=1.0, wasted__failed=1.0
    )
    assert parts_of({"costs/gpu": 2.0}, [group]) == near(wasted__no_spread=1.0, wasted__failed=1.0)
    assert parts_of({"costs/gpu": 2.0}, [art.TrajectoryGroup([])]) == near(other=2.0)


def test_stale_groups_weigh_as_much_as_the_mean_of_the_trained_ones():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)])]
    metrics = {"costs/train/tinker_sample": 4.0, "pipeline/step_num_groups_stale": 3.0}
    assert parts_of(metrics, groups) == near(learned=1.0, wasted__stale=3.0)


def test_a_context_that_is_trained_again_after_a_prefix_break_is_wasted():
    broken = art.Trajectory(
        messages_and_choices=[choice(range(4), range(4, 8)), choice(range(50, 58), range(60, 64))],
        reward=1.0,
    )
    whole = art.Trajectory(
        messages_and_choices=[choice(range(4), range(4, 8)), choice(range(10), range(10, 20))],
        reward=0.0,
    )
    groups = [art.TrajectoryGroup([broken, whole])]
    # 20 tokens of each are trained; the second context of the first one repeats 8
    assert parts_of({"costs/train/tinker_train": 4.0}, groups) == near(
        learned=3.2, wasted__prefix_breaks=0.8
    )
    assert parts_of({"costs/train/tinker_sample": 4.0}, groups) == near(learned=4.0)


def test_tokens_that_the_loss_dropped_are_masked():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)])]
    metrics = {"costs/train/tinker_train": 1.0, "loss/clipped_token_fraction": 0.25}
    assert parts_of(metrics, groups) == near(learned=1.0)
    for config in (TrainConfig(loss_fn="ppo"), TrainConfig(mask_prob_ratio=True)):
        assert parts_of(metrics, groups, config=config) == near(learned=0.75, wasted__masked=0.25)


def test_paid_calls_are_those_of_their_groups_and_count_in_one_row_only():
    dear, cheap = Account(usd=3.0), Account(usd=1.0)
    flat = art.TrajectoryGroup([attempt(1), attempt(1)]).paid_by(dear)
    taught = art.TrajectoryGroup([attempt(0), attempt(1)]).paid_by(cheap)
    groups = [flat, taught]
    assert parts_of({"costs/train/judge": 4.0}, groups) == near(learned=1.0, wasted__no_spread=3.0)
    # $2 besides, which no account has, are divided by tokens
    assert parts_of({"costs/train/judge": 6.0}, groups) == near(learned=2.0, wasted__no_spread=4.0)
    again = parts_of({"costs/train/judge": 4.0}, groups, new=[])
    assert again == near(learned=2.0, wasted__no_spread=2.0)
    # an account never has more than the row
    assert parts_of({"costs/train/judge": 0.4}, groups) == near(learned=0.1, wasted__no_spread=0.3)


def test_evaluations_and_rows_without_trained_groups_are_neither():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)])]
    metrics = {"costs/eval/judge": 1.0, "costs/gpu": 2.0, "costs/train/judge": 4.0}
    assert parts_of(metrics, groups, split="val") == near(evaluation=3.0, other=4.0)
    assert parts_of(metrics, groups, trained=False) == near(evaluation=1.0, other=6.0)
    assert parts_of(metrics) == near(evaluation=1.0, learned=6.0)  # supervised, without groups
    assert parts_of(metrics, trained=False) == near(evaluation=1.0, other=6.0)


def test_a_row_without_costs_has_no_parts():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)])]
    assert parts_of({"loss/train": 1.0}, groups) == parts_of({"costs/gpu": 0.0}, groups) == {}


def test_a_part_that_had_dollars_stays_in_the_rows_of_train():
    totals = RunningTotals(builtin_taxonomy(), {"signal/cum/wasted/failed": 2.0})
    trained = GroupsOfRow(trained=True)
    draft = with_signal(totals.draft("train", {"costs/gpu": 1.0}), "train", trained)
    assert draft.metrics["signal/wasted/failed"] == 0.0
    assert draft.totals["signal/cum/wasted/failed"] == 2.0


def test_groups_that_cannot_be_compared_are_other_dollars(caplog):
    bad = art.Trajectory(
        messages_and_choices=[choice(range(2), range(2))], reward=1.0, turn_rewards=[1.0, 2.0]
    )
    assert parts_of({"costs/gpu": 1.0}, [art.TrajectoryGroup([bad])]) == near(other=1.0)
    assert "not divided" in caplog.text


def test_which_groups_teach_depends_on_the_options():
    groups = [art.TrajectoryGroup([attempt(0), attempt(1)]), art.TrajectoryGroup([attempt(1)] * 2)]
    spread, everything = [True, False], [True, True]
    double = art.AdvantageSpec(name="d", create=lambda: lambda rewards: [2 * r for r in rewards])
    cases = [
        ({}, spread),
        ({"advantage_fn": double}, spread),
        ({"advantage_baseline": "value"}, everything),
        ({"loss_fn": "distill"}, everything),
        ({"loss_fn": "ppo", "distill_coef": 0.5}, everything),
        ({"loss_fn": attrs.evolve(PRESETS["distill"], distill_coef=0.0)}, [False, False]),
    ]
    for options, expected in cases:
        assert teaching(groups, TrainConfig(**options)) == expected, options


DOLLARS = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.01, 0.1, 1e-9, 3.3])
ATTEMPTS = st.one_of(
    st.just(FAILURE),
    st.builds(
        attempt,
        st.sampled_from([0.0, 0.5, 1.0]),
        tokens=st.integers(3, 40),
        start=st.integers(0, 3),
        cut=st.booleans(),
    ),
    st.builds(attempt, st.sampled_from([0.0, 1.0]), tokens=st.just(2), start=st.just(0)),
    st.builds(attempt, st.sampled_from([0.0, 1.0]), tokens=st.just(0)),
)  # fmt: skip
COSTS = st.fixed_dictionaries(
    {},
    optional={
        "costs/gpu": DOLLARS, "costs/train/judge": DOLLARS, "costs/train/tinker_train": DOLLARS,
        "costs/eval/judge": DOLLARS, "costs/tools": DOLLARS, "time/step_trainer_s": DOLLARS,
        "time/step_actor_s": DOLLARS, "pipeline/step_num_groups_stale": st.sampled_from([0.0, 3.0]),
        "loss/clipped_token_fraction": st.floats(0, 1),
    },
)  # fmt: skip


@given(
    metrics=COSTS,
    groups=st.lists(st.tuples(st.lists(ATTEMPTS, max_size=5), DOLLARS), max_size=4),
    split=st.sampled_from(["train", "val", "test", "other"]),
    trained=st.booleans(),
    options=st.sampled_from([{}, {"loss_fn": "ppo"}, {"mask_truncated": False}]),
    eval_s=DOLLARS,
)
def test_the_parts_sum_to_the_costs_of_any_row(metrics, groups, split, trained, options, eval_s):
    made = [art.TrajectoryGroup(each).paid_by(Account(usd=usd)) for each, usd in groups]
    found = parts_of(
        metrics, made, split=split, trained=trained, config=TrainConfig(**options), eval_s=eval_s
    )
    assert all(usd >= 0 for usd in found.values())
