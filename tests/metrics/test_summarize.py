from datetime import UTC, datetime, timedelta

import pytest

import art_core as art
from art_core.metrics.summarize import count, elapsed, scenario_ids, summarize
from art_core.metrics.taxonomy import builtin_taxonomy

TAXONOMY = builtin_taxonomy()


def attempt(reward, start=0.0, end=None, **metrics):
    zero = datetime(2026, 1, 1, tzinfo=UTC)
    return art.Trajectory(
        reward=reward,
        metrics=metrics,
        start_time=zero + timedelta(seconds=start),
        end_time=None if end is None else zero + timedelta(seconds=end),
    )


def choice(*ids):
    return {
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "x"},
        "prompt_token_ids": [1, 2],
        "token_ids": list(ids),
        "logprobs": {"content": [{"logprob": -0.5} for _ in ids]},
    }


GROUPS = [
    art.TrajectoryGroup(
        [attempt(0.0, correct=False), attempt(1.0, correct=True, calls=4)],
        exceptions=[ValueError("boo")],
        metrics={"difficulty": 2.0},
    ),
    art.TrajectoryGroup([attempt(0.5), attempt(0.5)], metrics={"difficulty": 4.0}),
    art.TrajectoryGroup([attempt(1.0)]),
]


def test_train_averages_stand_under_reward():
    averages = summarize(GROUPS, "train", TAXONOMY)
    assert averages == {
        "reward/mean": 0.6,
        "reward/std_dev": 0.25,
        "reward/exception_rate": 1 / 6,
        "reward/correct": 0.5,
        "reward/calls": 4.0,
        "reward/group_difficulty": 3.0,
        "train/num_groups_submitted": 3.0,
        "train/num_groups_trainable": 1.0,
        "train/num_trajectories": 5.0,
    }


def test_other_splits_stand_under_their_own_name():
    averages = summarize(GROUPS, "val", TAXONOMY)
    assert averages["val/reward"] == 0.6
    assert averages["val/reward_std_dev"] == 0.25
    assert averages["val/exception_rate"] == 1 / 6
    assert averages["val/correct"] == 0.5
    assert averages["val/group_difficulty"] == 3.0
    assert not any(key.startswith("train/") for key in averages)


def test_counts_of_train_join_the_totals_and_those_of_val_do_not():
    assert count(GROUPS, "train", TAXONOMY) == {
        "data/step_num_scenarios": 3.0,
        "data/step_num_trajectories": 5.0,
        "data/step_num_groups_submitted": 3.0,
        "data/step_num_groups_trainable": 1.0,
    }
    assert count(GROUPS, "val", TAXONOMY) == {
        "val/data/step_num_scenarios": 3.0,
        "val/data/step_num_trajectories": 5.0,
        "val/data/step_num_groups_submitted": 3.0,
    }


def test_sampled_tokens_of_all_histories_count_as_actor_tokens():
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "hi"}, choice(5, 6, 7)],
        additional_histories=[art.History(messages_and_choices=[choice(8)])],
    )
    assert (
        count([art.TrajectoryGroup([trajectory])], "train", TAXONOMY)["data/step_actor_tokens"]
        == 4.0
    )


def test_elapsed_time_of_parallel_rollouts_counts_overlaps_once():
    spans = [
        attempt(0, 0, 4),
        attempt(0, 1, 3),
        attempt(0, 3, 6),
        attempt(0, 10, 11),
        attempt(0, 20),
    ]
    assert elapsed(spans) == 7.0
    group = art.TrajectoryGroup(spans)
    assert count([group], "train", TAXONOMY)["time/step_actor_s"] == 7.0
    assert count([group], "test", TAXONOMY)["time/step_eval_s"] == 7.0


def test_nothing_gives_nothing():
    assert summarize([], "train", TAXONOMY) == {}
    assert count([], "train", TAXONOMY) == {}


def test_a_group_of_failures_alone_has_a_rate_and_no_reward():
    averages = summarize([art.TrajectoryGroup([], exceptions=[ValueError()])], "val", TAXONOMY)
    assert averages == {"val/exception_rate": 1.0}


@pytest.mark.parametrize("name", ["reward", "exception_rate"])
def test_a_metric_named_like_the_steps_own_is_an_error(name):
    with pytest.raises(art.MetricError, match=f"may not be named '{name}'"):
        summarize([art.TrajectoryGroup([art.Trajectory(metrics={name: 1.0})])], "train", TAXONOMY)


@pytest.mark.parametrize(
    ("split", "name"), [("train", "mean"), ("train", "std_dev"), ("val", "reward_std_dev")]
)
def test_a_metric_that_would_stand_where_the_steps_own_does_is_an_error(split, name):
    with pytest.raises(art.MetricError, match=f"may not be named '{name}'"):
        summarize([art.TrajectoryGroup([art.Trajectory(metrics={name: 1.0})])], split, TAXONOMY)


def test_a_trajectorys_metric_and_a_groups_own_may_not_share_a_key():
    attempt = art.Trajectory(metrics={"group_size": 1.0})
    with pytest.raises(art.MetricError, match="another metric has it already"):
        summarize([art.TrajectoryGroup([attempt], metrics={"size": 2.0})], "train", TAXONOMY)


def summarized(split, taxonomy=TAXONOMY, of_group=None, **metrics):
    """Summarize two attempts whose metrics are the given pairs of values, and a group's own."""
    attempts = [
        art.Trajectory(reward=0.5, metrics={n.replace("__", "/"): v[i] for n, v in metrics.items()})
        for i in range(2)
    ]
    groups = [art.TrajectoryGroup(attempts, metrics=of_group or {})]
    found = summarize(groups, split, taxonomy) | count(groups, split, taxonomy)
    own = summarize([art.TrajectoryGroup(attempt(0.5) for _ in range(2))], split, TAXONOMY)
    counted = count([art.TrajectoryGroup(attempt(0.5) for _ in range(2))], split, TAXONOMY)
    return {key: value for key, value in found.items() if key not in {**own, **counted}}


@pytest.mark.parametrize(
    ("name", "split", "key", "value"),
    [
        ("helpful", "train", "reward/helpful", 0.5),
        ("reward/helpful", "train", "reward/helpful", 0.5),
        ("reward/helpful/deep", "train", "reward/helpful/deep", 0.5),
        ("loss/judge", "train", "loss/judge", 0.5),
        ("train/helpful", "train", "train/helpful", 0.5),
        ("data/step_tool_calls", "train", "data/step_tool_calls", 1.0),
        ("tools/calls", "train", "reward/tools/calls", 0.5),
        ("reward/helpful", "val", "val/helpful", 0.5),
        ("val/helpful", "val", "val/helpful", 0.5),
        ("loss/judge", "val", "val/loss/judge", 0.5),
        ("data/step_tool_calls", "val", "val/data/step_tool_calls", 1.0),
        ("tools/calls", "val", "val/tools/calls", 0.5),
        ("reward/helpful", "holdout", "holdout/helpful", 0.5),
    ],
)
def test_a_metric_of_a_trajectory_that_has_its_section_keeps_it(name, split, key, value):
    assert summarized(split, **{name.replace("/", "__"): (0.25, 0.75)}) == {key: value}


@pytest.mark.parametrize(
    ("name", "split", "key"),
    [
        ("size", "train", "reward/group_size"),
        ("reward/size", "train", "reward/size"),
        ("loss/size", "train", "loss/size"),
        ("shop/size", "train", "reward/group_shop/size"),
        ("reward/size", "test", "test/size"),
        ("shop/size", "test", "test/group_shop/size"),
    ],
)
def test_a_metric_of_a_group_that_has_its_section_keeps_it(name, split, key):
    assert summarized(split, of_group={name: 2.0}) == {key: 2.0}


def test_a_section_of_a_plugin_is_kept_and_combines_as_its_spec_says():
    spec = art.MetricSpec(key="arena/won", unit="game", help="won games", combine="last")
    taxonomy = builtin_taxonomy().extended([spec])
    assert summarized("train", taxonomy, arena__won=(1, 3)) == {"arena/won": 3.0}
    assert summarized("train", arena__won=(1, 3)) == {"reward/arena/won": 2.0}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("costs/judge", "may not be a cost, got 'costs/judge'"),
        ("time/cum/tools_s", "may not be named 'time/cum/tools_s'"),
        ("reward/reward", "may not be named 'reward/reward'"),
        ("reward/exception_rate", "may not be named"),
        ("data/step_num_scenarios", "may not be named"),
    ],
)
def test_a_sectioned_name_that_is_reserved_is_refused_by_name(split, name, says):
    with pytest.raises(art.MetricError, match=says):
        summarized(split, **{name.replace("/", "__"): (0.25, 0.75)})


@pytest.mark.parametrize(
    "name", ["reward/mean", "train/reward", "train/num_trajectories", "time/step_wall_s"]
)
def test_a_sectioned_name_of_the_train_steps_own_is_refused(name):
    with pytest.raises(art.MetricError, match=f"may not be named '{name}'"):
        summarized("train", **{name.replace("/", "__"): (0.25, 0.75)})


def test_a_bare_and_a_sectioned_name_of_one_metric_are_an_error():
    with pytest.raises(art.MetricError, match="another metric has it already"):
        summarized("train", helpful=(0, 1), reward__helpful=(0, 1))


def test_scenario_ids_come_from_groups_and_trajectories():
    groups = [
        art.TrajectoryGroup([art.Trajectory(metadata={"scenario_id": 7})]),
        art.TrajectoryGroup([art.Trajectory()], metadata={"scenario_id": "b"}),
    ]
    assert scenario_ids(groups) == {"7", "b"}


def test_an_infinite_metric_stays_visible_in_its_mean():
    groups = [art.TrajectoryGroup([attempt(0.0, x=float("inf")), attempt(0.0, x=float("-inf"))])]
    assert str(summarize(groups, "train", TAXONOMY)["reward/x"]) == "nan"


def test_an_unknown_reward_makes_the_mean_unknown():
    groups = [art.TrajectoryGroup([attempt(0.5), attempt(None)])]
    assert str(summarize(groups, "val", TAXONOMY)["val/reward"]) == "nan"


@pytest.mark.parametrize("reward", ["1", [1.0]])
def test_a_reward_that_is_no_number_is_an_error_that_says_so(reward):
    with pytest.raises(art.MetricError, match="'reward' must be a number"):
        summarize([art.TrajectoryGroup([attempt(0.5), attempt(reward)])], "val", TAXONOMY)
