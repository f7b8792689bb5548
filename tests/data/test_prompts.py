import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.base.errors import ConfigError
from art_core.data.store import append_groups, read_groups, restore_prompts, shorten_prompts
from art_core.data.trajectory import tokens_of


def choice(prompt, answer):
    return {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": prompt,
        "token_ids": answer,
        "logprobs": {"content": [{"logprob": -0.5}] * len(answer)},
    }


def turns(count, heard=40):
    """Return the choices of a conversation: each prompt has all that was before."""
    ids, choices = [], []
    for turn in range(count):
        ids = ids + [turn] * heard
        choices.append(choice(ids, [1000 + turn]))
        ids = [*ids, 1000 + turn]
    return choices


def stored(tmp_path, *histories):
    main, *others = histories
    trajectory = art.Trajectory(
        messages_and_choices=main,
        additional_histories=[art.History(messages_and_choices=items) for items in others],
    )
    path = tmp_path / "0001.jsonl"
    append_groups(path, [art.TrajectoryGroup([trajectory])])
    return path, trajectory


def prompts(path):
    (line,) = map(orjson.loads, path.read_bytes().splitlines())
    (trajectory,) = line["trajectories"]
    histories = (trajectory, *trajectory["additional_histories"])
    return [
        [item["prompt_token_ids"] for item in history["messages_and_choices"] if "message" in item]
        for history in histories
    ]


def read_back(path):
    (group,) = read_groups(path)
    return group.trajectories[0]


def test_a_turns_prompt_is_stored_as_what_it_adds_to_the_turn_before(tmp_path):
    user = {"role": "user", "content": "go"}
    first, second, third = turns(3)
    path, trajectory = stored(tmp_path, [user, first, user, second, user, third])
    assert prompts(path) == [
        [
            [0] * 40,
            {"turn": [0, 1], "same": 41, "then": [1] * 40},
            {"turn": [0, 3], "same": 82, "then": [2] * 40},
        ]
    ]
    assert read_back(path).messages_and_choices == trajectory.messages_and_choices
    assert third["prompt_token_ids"] == [0] * 40 + [1000] + [1] * 40 + [1001] + [2] * 40


def test_a_prompt_that_rewrites_the_end_shares_the_beginning_and_a_short_one_nothing(tmp_path):
    path, trajectory = stored(
        tmp_path,
        [choice([*range(50)], [7, 8]), choice([*range(30), 99], [9]), choice([0, 1, 2], [3])],
    )
    shared = {"turn": [0, 0], "same": 30, "then": [99]}
    assert prompts(path) == [[[*range(50)], shared, [0, 1, 2]]]
    assert read_back(path).messages_and_choices == trajectory.messages_and_choices


def test_sub_agents_share_the_beginning_that_is_longest(tmp_path):
    short, long = [*range(20)], [*range(60)]
    path, trajectory = stored(
        tmp_path, [choice(short, [500])], [choice(long, [501])], [choice([*long, 1], [502])]
    )
    assert prompts(path)[1:] == [
        [{"turn": [0, 0], "same": 20, "then": [*range(20, 60)]}],
        [{"turn": [1, 0], "same": 60, "then": [1]}],
    ]
    again = read_back(path).histories()
    assert [h.messages_and_choices for h in again] == [
        h.messages_and_choices for h in trajectory.histories()
    ]


def test_a_choice_without_token_ids_and_one_with_odd_ones_are_stored_as_they_are(tmp_path):
    odd = choice("no ids", []) | {"token_ids": None}
    answered = choice([*range(20)], []) | {"token_ids": None}
    bare = {"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    path, trajectory = stored(tmp_path, [bare, odd, answered, choice([*range(20)], [1])])
    assert read_back(path).messages_and_choices == trajectory.messages_and_choices


def test_a_prompt_of_a_turn_that_is_not_there_is_no_group():
    group = art.TrajectoryGroup([art.Trajectory(messages_and_choices=turns(1))]).to_dict()
    lost = {"turn": [0, 5], "same": 1, "then": []}
    group["trajectories"][0]["messages_and_choices"][0]["prompt_token_ids"] = lost
    with pytest.raises(ConfigError, match=r"not a trajectory group: \(0, 5\) is missing"):
        art.TrajectoryGroup.from_dict(group)


def test_plain_values_hold_whole_prompts():
    group = art.TrajectoryGroup([art.Trajectory(messages_and_choices=turns(2))])
    items = group.to_dict()["trajectories"][0]["messages_and_choices"]
    assert items == turns(2)
    assert tokens_of(items[1]).prompt_ids == (*[0] * 40, 1000, *[1] * 40)


ids = st.lists(st.integers(0, 1), max_size=40)


@given(st.lists(st.lists(st.tuples(ids, ids), max_size=4), min_size=1, max_size=3))
def test_whatever_the_prompts_are_they_come_back(histories):
    items = [[choice(list(p), list(a)) for p, a in history] for history in histories]
    short = [[dict(item) for item in history] for history in items]
    shorten_prompts(short)
    assert restore_prompts(orjson.loads(orjson.dumps(short))) == items
