"""The scenarios of a step, chosen by what they teach for their cost."""

import random

import pytest

import art_core as art
from art_core.data.sampler import Beliefs, Seen
from art_core.data.store import append_groups, trajectory_file

POOL = ["easy", "fit", "hopeless"]


def beliefs(*seen, band=(0.0, 1.0), pool=POOL):
    return Beliefs(pool, band, [(1.0, each) for each in seen])


def shares(known, draws=200):
    """How often each scenario is drawn first."""
    first = [known.draw(random.Random(n), 1)[0][0] for n in range(draws)]
    return {name: first.count(name) / draws for name in known.scenarios}


def known(tokens=(10.0, 10.0, 10.0)):
    easy, fit, hopeless = tokens
    return [
        Seen("easy", (1.0,) * 16, easy * 16, 16),
        Seen("fit", (0.0, 1.0) * 8, fit * 16, 16),
        Seen("hopeless", (0.0,) * 16, hopeless * 16, 16),
    ]


def test_the_scenario_whose_attempts_differ_is_drawn():
    assert shares(beliefs(*known()))["fit"] > 0.95
    untried = shares(beliefs())
    assert all(share > 0.2 for share in untried.values())


def test_of_equal_chances_the_cheaper_one_is_drawn():
    seen = [Seen(name, (0.0, 1.0) * 8, tokens * 16, 16) for name, tokens in (("a", 10), ("b", 40))]
    assert shares(beliefs(*seen, pool=["a", "b"]))["a"] > 0.95


def test_scenarios_outside_of_the_band_come_last():
    seen = [
        Seen("hard", (0.0,) * 36 + (1.0,) * 4, 40.0, 40),
        Seen("half", (0.0, 1.0) * 20, 40.0 * 9, 40),
    ]
    assert shares(beliefs(*seen, pool=["hard", "half"]))["hard"] > 0.8
    assert shares(beliefs(*seen, pool=["hard", "half"], band=(0.3, 0.7)))["half"] > 0.9


def test_rewards_of_any_range_are_scaled_by_the_lowest_and_the_highest():
    large = [Seen("a", (-10.0, 30.0) * 8), Seen("b", (10.0, 11.0) * 8)]
    assert shares(beliefs(*large, pool=["a", "b"]))["a"] > 0.95


def test_a_group_of_one_has_a_success_rate_and_one_that_failed_has_a_cost():
    belief = beliefs(Seen("fit", (1.0,), 5.0, 1), Seen("fit", (), 7.0, 1))._found()[0]["fit"]
    assert (belief.wins, belief.losses, belief.differ, belief.agree) == (1.0, 0.0, 0.0, 0.0)
    assert (belief.tokens, belief.attempts) == (12.0, 2.0)


def test_a_draw_leaves_out_what_was_tried_and_depends_on_its_random_numbers_only():
    made = beliefs(*known())
    assert made.draw(random.Random(1), 9) == made.draw(random.Random(1), 9)
    assert [name for name, _ in made.draw(random.Random(1), 9, {"fit"})] != POOL
    assert {name for name, _ in made.draw(random.Random(1), 9, {"fit"})} == {"easy", "hopeless"}


def attempt(reward, tokens=3):
    ids = list(range(tokens))
    choice = {
        "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop",
        "prompt_token_ids": [1], "token_ids": ids,
        "logprobs": {"content": [{"logprob": -1.0} for _ in ids]},
    }  # fmt: skip
    asked = {"role": "user", "content": "?"}
    return art.Trajectory(messages_and_choices=[asked, choice], reward=reward)


class Tries:
    """A rollout whose reward alternates at "fit", and is the same at each other scenario."""

    def __init__(self):
        self.of = dict.fromkeys(POOL, 0)

    async def __call__(self, scenario):
        self.of[scenario] += 1
        fit = self.of[scenario] % 2
        return attempt({"easy": 1.0, "fit": float(fit), "hopeless": 0.0}[scenario])


def sampler(folder, **options):
    return art.ScenarioSampler(**{"scenarios": POOL, "run_dir": folder, "groups": 1} | options)


def stored(folder, step, *groups):
    append_groups(trajectory_file(folder, "train", step), groups)


def group(name, *rewards):
    return art.TrajectoryGroup([attempt(r) for r in rewards], metadata={"scenario_id": name})


async def test_groups_without_spread_are_replaced_up_to_a_bound(tmp_path):
    tries = Tries()
    made = sampler(tmp_path, attempts=4, most=3, groups=1)
    groups = await made.gather(0, tries, pbar_desc=None)
    assert groups[-1].metadata == {"scenario_id": "fit"}
    assert len(groups) <= 3
    without = sampler(tmp_path, attempts=4, groups=3, most=9)
    groups = await without.gather(0, Tries(), pbar_desc=None)
    assert len(groups) == 3  # the pool has no more
    bounded = sampler(tmp_path, scenarios=["easy", "hopeless", "x"], attempts=2, groups=1, most=2)

    async def flat(scenario):
        return attempt(0.0)

    assert len(await bounded.gather(0, flat, pbar_desc=None)) == 2


async def test_a_group_grows_while_its_attempts_agree_and_its_scenario_is_worth_it(tmp_path):
    stored(tmp_path, 1, group("fit", *(0.0, 1.0) * 20), group("hopeless", *[0.0] * 40))
    late = {"fit": 0, "hopeless": 0}

    async def rollout(scenario):
        late[scenario] += 1
        return attempt(float(scenario == "fit" and late[scenario] == 5))

    made = sampler(tmp_path, scenarios=["fit", "hopeless"], groups=2, most=2, attempts=8, first=2)
    groups = {g.metadata["scenario_id"]: g for g in await made.gather(1, rollout, pbar_desc=None)}
    assert groups["fit"].rewards == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert len(groups["hopeless"]) == 2


async def test_later_groups_of_a_step_may_fail_and_the_first_ones_may_not(tmp_path):
    begun = []

    async def rollout(scenario):
        begun.append(scenario)
        if len(begun) > 2:
            raise ValueError("down")
        return attempt(1.0)

    made = sampler(tmp_path, attempts=2)
    groups = await made.gather(0, rollout, pbar_desc=None)
    assert [(len(g), len(g.failures)) for g in groups] == [(2, 0), (0, 2)]
    with pytest.raises(art.RolloutError, match="all 2 rollouts failed"):
        await made.gather(1, rollout, pbar_desc=None)
    begun.clear()
    with pytest.raises(art.RolloutError, match="max_exceptions"):
        await made.gather(2, rollout, pbar_desc=None, max_exceptions=0)


async def test_the_groups_of_players_join_those_of_the_same_player(tmp_path):
    async def rollout(scenario):
        return {"x": attempt(0.0), "o": attempt(0.0)}

    made = sampler(tmp_path, scenarios=["a"], attempts=4, first=2, seed=1)
    groups = await made.gather(0, rollout, pbar_desc=None)
    assert {g.metadata["player"] for g in groups} == {"x", "o"}
    assert {len(g) for g in groups} in ({2}, {4})


async def test_a_judged_group_cannot_grow(tmp_path):
    async def judge(group):
        return group

    with pytest.raises(art.ConfigError, match="lets it grow"):
        await sampler(tmp_path, first=2).gather(0, Tries(), after_each=judge)
    groups = await sampler(tmp_path).gather(0, Tries(), after_each=judge, pbar_desc=None)
    assert all(len(g) == 8 for g in groups)


def test_what_is_known_is_read_from_the_steps_so_far_and_fades(tmp_path):
    made = sampler(tmp_path, discount=0.5)
    stored(tmp_path, 1, group("fit", 0.0, 1.0))
    stored(tmp_path, 2, group("easy", 1.0, 1.0), art.TrajectoryGroup([attempt(1.0)]))
    stored(tmp_path, 3, group("hopeless", 0.0, 0.0))
    unknown = attempt(0.0)
    unknown.reward = float("nan")
    unknown.messages_and_choices.append({"role": "user", "content": "ok"})
    stored(tmp_path, 2, art.TrajectoryGroup([unknown], metadata={"scenario_id": "other"}))
    with trajectory_file(tmp_path, "train", 2).open("ab") as file:
        file.write(b'{"torn": ')
    assert made.beliefs(0).seen == []
    assert (
        made.beliefs(2).seen
        == made.beliefs(2).seen
        == [
            (0.5, Seen("fit", (0.0, 1.0), 8.0, 2)),
            (1.0, Seen("easy", (1.0, 1.0), 8.0, 2)),
            (1.0, Seen("other", (), 4.0, 1)),
        ]
    )
    assert made.beliefs(2)._found()[1].wins == 2.5
    stored(tmp_path, 1, group("fit", 1.0))  # a file that has changed is read again
    assert len(made.beliefs(1).seen) == 2


def test_tokens_of_turns_count_once_and_turn_rewards_are_part_of_the_reward(tmp_path):
    long = attempt(1.0, tokens=30)
    second = attempt(0.0).messages_and_choices[1] | {"prompt_token_ids": [1, *range(30), 7]}
    long.messages_and_choices.append(second)
    long.turn_rewards = [0.25, 0.25]
    stored(tmp_path, 1, art.TrajectoryGroup([long], metadata={"scenario_id": "fit"}))
    ((_, seen),) = sampler(tmp_path).beliefs(1).seen
    assert seen == Seen("fit", (1.5,), 1 + 30 + 1 + 3, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"scenarios": []}, {"scenarios": ["a", "a"]}, {"groups": 0}, {"first": 9},
        {"groups": 4, "most": 3}, {"band": (0.9, 0.1)}, {"discount": 0.0},
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(tmp_path, options):
    with pytest.raises(art.ConfigError, match="a sampler needs|band must be"):
        sampler(tmp_path, **options)


async def test_draws_are_those_of_the_seed_the_step_and_the_log(tmp_path):
    stored(tmp_path, 1, group("fit", 0.0, 1.0), group("easy", 1.0, 1.0))
    draws = []
    for _ in range(2):
        groups = await sampler(tmp_path).gather(1, Tries(), pbar_desc=None)
        draws.append([(g.metadata["scenario_id"], g.rewards) for g in groups])
    assert draws[0] == draws[1]
