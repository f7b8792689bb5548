import decimal

import numpy as np
import pytest

from art_core.base.errors import MetricError
from art_core.metrics.rollup import place_names
from art_core.metrics.taxonomy import MetricSpec, builtin_taxonomy, cumulative_key, number

taxonomy = builtin_taxonomy()


@pytest.mark.parametrize(
    ("name", "split", "key"),
    [
        ("foo", "train", "train/foo"),
        ("foo", "val", "val/foo"),
        ("costs/train/judge", "val", "costs/train/judge"),
        ("foo", "holdout", "holdout/foo"),
        ("holdout/foo", "holdout", "holdout/foo"),
        ("reward/größe", "train", "reward/größe"),
    ],
)
def test_a_sectioned_name_stays_and_a_bare_one_goes_under_its_split(name, split, key):
    assert taxonomy.place(name, split) == key


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("revard/mean", "Did you mean 'reward'"),
        ("costs_judge", "Log it as 'costs/judge'"),
        ("costs/all", "reserved"),
        ("costs/cum/judge", "reserved"),
        ("time/cum/trainer_s", "reserved"),
        ("costs//judge", "empty component"),
        ("costs/judge ", "stray white space"),
        ("", "empty component"),
        ("reward/a\nb", "control characters"),
    ],
)
def test_a_bad_name_is_an_error_that_says_why(name, says):
    with pytest.raises(MetricError, match=says):
        taxonomy.place(name, "train")


@pytest.mark.parametrize("name", ["می\u200cشود", "क्\u200dष", "👨\u200d👩\u200d👧"])
def test_a_name_may_have_the_joiners_that_its_script_needs(name):
    assert taxonomy.place(f"reward/{name}", "train") == f"reward/{name}"


@pytest.mark.parametrize("name", ["reward/\u200d", "reward/a \u200c", "reward/a\u200b"])
def test_joiners_hide_neither_white_space_nor_an_empty_component(name):
    with pytest.raises(MetricError, match="empty component or stray white space"):
        taxonomy.place(name, "train")


def test_a_name_that_is_not_a_string_is_an_error():
    with pytest.raises(MetricError, match="must be a string"):
        place_names((3,), "train", taxonomy)


@pytest.mark.parametrize(
    ("value", "as_float"),
    [
        (True, 1.0),
        (3, 3.0),
        (decimal.Decimal("0.5"), 0.5),
        (np.float32(0.25), 0.25),
        (np.int64(7), 7.0),
    ],
)
def test_numbers_of_any_kind_become_floats(value, as_float):
    result = number("loss/train", value)
    assert (result, type(result)) == (as_float, float)


@pytest.mark.parametrize("value", [None, "1.0", b"1", [1.0], object()])
def test_what_is_no_number_is_an_error_that_names_the_metric(value):
    with pytest.raises(MetricError, match="'loss/train' must be a number"):
        number("loss/train", value)


def test_a_huge_int_counts_as_infinite_so_that_the_row_sets_it_aside():
    assert number("x", 10**400) == float("inf")
    assert number("x", -(10**400)) == float("-inf")


def test_two_names_that_meet_in_one_key_are_an_error():
    with pytest.raises(MetricError, match="'train/foo' is given twice"):
        place_names(("foo", "train/foo"), "train", taxonomy)


def test_a_spec_is_its_own_or_that_of_the_longest_pattern():
    assert taxonomy.spec("loss/train").unit == "loss"
    assert taxonomy.spec("costs/train/judge/deep").unit == "USD"
    assert taxonomy.spec("reward/group_difficulty").help.startswith("a group's own")
    assert taxonomy.spec("holdout/foo") == MetricSpec(key="holdout/foo", unit="", help="")


def test_old_names_resolve_and_canonical_ones_stay():
    assert taxonomy.resolve("train/reward") == "reward/mean"
    assert taxonomy.resolve("train/group/difficulty") == "reward/group_difficulty"
    assert taxonomy.resolve("time/step_rollout_s") == "time/step_actor_s"
    assert taxonomy.resolve("train/num_trajectories") == "train/num_trajectories"
    assert taxonomy.direction("train/reward") == "higher"
    assert taxonomy.direction("costs/train/judge") == "lower"


@pytest.mark.parametrize(
    ("name", "split", "key"),
    [
        ("time/step_rollout_s", "train", "time/step_actor_s"),
        ("train/group/difficulty", "train", "reward/group_difficulty"),
        ("reward", "train", "reward/mean"),
        ("reward", "val", "val/reward"),
        ("val/group/difficulty", "val", "val/group_difficulty"),
    ],
)
def test_what_is_logged_under_a_former_name_is_written_under_todays(name, split, key):
    assert taxonomy.place(name, split) == key


def test_a_former_name_beside_todays_is_an_error():
    with pytest.raises(MetricError, match="'time/step_actor_s' is given twice"):
        place_names(("time/step_actor_s", "time/step_rollout_s"), "train", taxonomy)
    with pytest.raises(MetricError, match="'time/cum/actor_s' is reserved"):
        taxonomy.place("time/cum/rollout_s", "train")


def test_nothing_lies_below_the_sum_of_all_costs():
    with pytest.raises(MetricError, match="'costs/all/judge' is reserved"):
        taxonomy.place("costs/all/judge", "train")
    assert taxonomy.place("costs/train/all/judge", "train") == "costs/train/all/judge"


def test_no_alias_is_a_canonical_name():
    assert not taxonomy.aliases.keys() & taxonomy.specs.keys()


def test_a_plugin_adds_sections_and_an_unequal_twin_is_a_conflict():
    spec = MetricSpec(key="offpolicy/staleness", unit="step", help="age of the weights")
    wider = taxonomy.extended([spec, spec])
    assert wider.place("offpolicy/staleness", "train") == "offpolicy/staleness"
    with pytest.raises(MetricError, match="already defined"):
        wider.extended([MetricSpec(key="offpolicy/staleness", unit="s", help="age of the weights")])


def test_a_cumulative_key_drops_the_step_of_its_leaf():
    assert cumulative_key("time/step_trainer_s") == "time/cum/trainer_s"
    assert cumulative_key("costs/train/judge") == "costs/cum/train/judge"
    assert cumulative_key("costs/step_judge") == "costs/cum/step_judge"
    assert cumulative_key("throughput/step_actor_idle_s") == "throughput/cum/actor_idle_s"


@pytest.mark.parametrize(
    ("key", "counted"),
    [
        ("data/step_num_scenarios", True),
        ("data/step_things_of_mine", True),
        ("data/cum/actor_tokens", True),
        ("train/num_trajectories", True),
        ("val/data/step_num_trajectories", True),
        ("holdout/data/step_num_trajectories", True),
        ("data/staleness_mean", False),
        ("reward/mean", False),
        ("costs/train/judge", False),
        ("time/step_wall_s", False),
        ("throughput/avg_actor_tok_per_s", False),
        ("val/reward", False),
    ],
)
def test_counts_are_known_by_their_unit(key, counted):
    assert builtin_taxonomy().is_count(key) is counted


def test_a_unit_of_a_plugin_that_names_things_makes_a_count():
    games = MetricSpec(key="arena/games", unit="game", help="games played", combine="sum")
    mean = MetricSpec(key="arena/mean_games", unit="game", help="games played, mean")
    taxonomy = builtin_taxonomy().extended([games, mean])
    assert taxonomy.is_count("arena/games")
    assert not taxonomy.is_count("arena/mean_games")
