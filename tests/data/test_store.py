from decimal import Decimal
from pathlib import Path

import attrs
import numpy as np
import orjson
import pytest
from openai.types.chat import ChatCompletionMessage

import art_core as art
from art_core.base.errors import HistoryError, RolloutFailure
from art_core.data.store import (
    append_groups,
    move_groups,
    read_groups,
    set_earlier_aside,
    trajectory_file,
)
from art_core.data.trajectory import is_choice

CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "yes"},
    "finish_reason": "stop",
    "prompt_token_ids": [1, 2],
    "token_ids": [7],
    "logprobs": {"content": [{"logprob": -0.25}]},
    "policy_version": 3,
}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def whole_group():
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "hi é"}, CHOICE],
        reward=0.5,
        turn_rewards=[0.25],
        tools=TOOLS,
        additional_histories=[art.History(messages_and_choices=[CHOICE], tools=TOOLS)],
        metrics={"correct": True, "turns": 2},
        metadata={"seed": 4},
        logs=["a line"],
        initial_policy_version=3,
        final_policy_version=4,
    ).finish()
    return art.TrajectoryGroup(
        [trajectory, art.Trajectory()],
        exceptions=[RolloutFailure(reason="timeout", type="TimeoutError", message="late")],
        metadata={"scenario_id": "a"},
        metrics={"judged": 1.0},
        logs=["of the group"],
    )


@pytest.fixture
def path(tmp_path):
    return trajectory_file(tmp_path, "train", 12)


def stored_again(path, group):
    append_groups(path, [group])
    (read,) = read_groups(path)
    return read


def test_a_file_lies_below_its_split_and_is_named_by_its_step():
    file = trajectory_file(Path("run"), "val", 7)
    assert str(file) == "run/trajectories/val/0007.jsonl"
    assert trajectory_file(Path("run"), "val", 123456).name == "123456.jsonl"


def test_what_was_written_is_read_back_whole(path):
    group = whole_group()
    read = stored_again(path, group)
    assert [attrs.asdict(t) for t in read] == [attrs.asdict(t) for t in group]
    assert read.failures == group.failures
    assert (read.metadata, read.metrics, read.logs) == (group.metadata, group.metrics, group.logs)


def test_a_group_goes_through_plain_values_and_back():
    group = whole_group()
    again = art.TrajectoryGroup.from_dict(orjson.loads(orjson.dumps(group.to_dict())))
    assert orjson.dumps(again.to_dict()) == orjson.dumps(group.to_dict())
    assert "token_ids" not in str(group.to_dict(tokens=False))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda stored: stored.pop("metadata"), "'metadata' is missing"),
        (lambda stored: stored["trajectories"][0].update(start_time=5), "fromisoformat"),
        (lambda stored: stored["trajectories"][0].update(surprise=1), "surprise"),
        (lambda stored: stored.update(trajectories=3), "int"),
    ],
)
def test_values_that_are_no_group_are_told_apart(damage, said):
    stored = orjson.loads(orjson.dumps(whole_group().to_dict()))
    damage(stored)
    with pytest.raises(art.ConfigError, match="not a trajectory group") as caught:
        art.TrajectoryGroup.from_dict(stored)
    assert said in str(caught.value)


def test_an_attempt_without_rewards_of_turns_is_stored_as_before():
    with_turns, without = whole_group().to_dict()["trajectories"]
    assert with_turns["turn_rewards"] == [0.25]
    assert "turn_rewards" not in without


def test_groups_are_appended_a_line_each(path):
    append_groups(path, [whole_group(), art.TrajectoryGroup()])
    append_groups(path, [art.TrajectoryGroup(metadata={"scenario_id": "b"})])
    assert path.read_bytes().count(b"\n") == 3
    assert [len(g) for g in read_groups(path)] == [2, 0, 0]


def test_groups_move_to_another_file(path, tmp_path):
    one, two = art.TrajectoryGroup(metadata={"n": 1}), [whole_group(), art.TrajectoryGroup()]
    append_groups(path, [one])
    append_groups(path, two)
    target = tmp_path / "next" / "2.jsonl"
    move_groups(two, path, target)
    assert [g.metadata for g in read_groups(path)] == [{"n": 1}]
    assert [len(g) for g in read_groups(target)] == [2, 0]
    append_groups(path, [one])
    move_groups(two, path, target)
    assert [len(list(read_groups(file))) for file in (path, target)] == [2, 2]


def test_groups_that_cannot_be_cut_are_in_the_other_file(path, tmp_path):
    target = tmp_path / "2.jsonl"
    with pytest.raises(HistoryError, match="cannot take groups of another step out of"):
        move_groups([whole_group()], path, target)
    assert len(list(read_groups(target))) == 1


def test_earlier_groups_of_a_step_are_set_aside(path):
    one, two, three = (art.TrajectoryGroup(metadata={"n": n}) for n in range(3))
    set_earlier_aside(path, append_groups(path, [one]))
    aside = path.parent / "earlier" / path.name
    assert not aside.exists()
    start = append_groups(path, [two])
    append_groups(path, [three])
    set_earlier_aside(path, start)
    assert [g.metadata["n"] for g in read_groups(path)] == [1, 2]
    assert [g.metadata["n"] for g in read_groups(aside)] == [0]
    set_earlier_aside(path, append_groups(path, [three], again=True))
    assert [g.metadata["n"] for g in read_groups(path)] == [2]
    assert [g.metadata["n"] for g in read_groups(aside)] == [0, 1]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, "earlier"]


def test_a_torn_line_is_set_aside_too(path):
    append_groups(path, [art.TrajectoryGroup(metadata={"n": 0})])
    with path.open("ab") as file:
        file.write(b'{"trajectories": [')
    set_earlier_aside(path, append_groups(path, [art.TrajectoryGroup(metadata={"n": 1})]))
    assert [g.metadata["n"] for g in read_groups(path)] == [1]


def test_groups_that_cannot_be_set_aside_stay(path):
    append_groups(path, [art.TrajectoryGroup(metadata={"n": 0})])
    start = append_groups(path, [art.TrajectoryGroup(metadata={"n": 1})])
    (path.parent / "earlier").write_text("a file is in the way")
    with pytest.raises(HistoryError, match="cannot move groups of an earlier attempt"):
        set_earlier_aside(path, start)
    assert [g.metadata["n"] for g in read_groups(path)] == [0, 1]


def test_token_data_may_be_left_out(path):
    append_groups(path, [whole_group()], tokens=False)
    (group,) = read_groups(path)
    kept = group.trajectories[0].messages_and_choices[1]
    assert is_choice(kept)
    assert not {"prompt_token_ids", "token_ids", "logprobs"} & kept.keys()
    assert kept["policy_version"] == 3


def test_openai_messages_are_stored_as_their_dicts(path):
    message = ChatCompletionMessage(role="assistant", content="yes")
    read = stored_again(path, art.TrajectoryGroup([art.Trajectory(messages_and_choices=[message])]))
    expected = [{"role": "assistant", "content": "yes"}]
    assert read.trajectories[0].messages_and_choices == expected


def test_what_json_cannot_hold_is_kept_as_close_as_can_be(path):
    metadata = {
        "set": {1},
        "decimal": Decimal("0.5"),
        "array": np.array([1, 2]),
        "odd array": np.array(["a"], dtype=object),
        "path": Path("x"),
        "model": ChatCompletionMessage(role="assistant", content="yes"),
        3: "int key",
    }
    read = stored_again(path, art.TrajectoryGroup(metadata=metadata)).metadata
    assert read.pop("model")["content"] == "yes"
    assert read == {
        "set": [1],
        "decimal": 0.5,
        "array": [1, 2],
        "odd array": ["a"],
        "path": repr(Path("x")),
        "3": "int key",
    }


def test_halves_of_characters_and_huge_integers_do_not_cost_a_step_its_trajectories(path):
    said = art.Trajectory(messages_and_choices=[{"role": "user", "content": "a\ud83d"}], reward=1.0)
    metadata = {"huge": 1 << 64, (1, 2): ["x"], "small": 7}
    read = stored_again(path, art.TrajectoryGroup([said], metadata=metadata))
    assert read.metadata == {"huge": str(1 << 64), "(1, 2)": ["x"], "small": 7}
    assert read.trajectories[0].messages() == [{"role": "user", "content": "a?"}]
    assert read.rewards == [1.0]


def test_a_torn_last_line_is_passed_over_and_the_next_group_begins_a_line(path, caplog):
    append_groups(path, [art.TrajectoryGroup(metadata={"n": 1})])
    with path.open("ab") as file:
        file.write(b'{"trajectories": [')
    assert [g.metadata["n"] for g in read_groups(path)] == [1]
    append_groups(path, [art.TrajectoryGroup(metadata={"n": 2})])
    assert [g.metadata["n"] for g in read_groups(path)] == [1, 2]
    assert "line 2 is torn" in caplog.text


def test_a_group_that_the_disk_does_not_take_leaves_the_file_as_it_was(path, monkeypatch):
    append_groups(path, [whole_group()])
    before = path.read_bytes()

    class Full(type(path)):
        def open(self, *args, **options):
            file = super().open(*args, **options)
            return Short(file)

    with pytest.raises(HistoryError, match=r"cannot store trajectories in .*: short write"):
        append_groups(Full(path), [whole_group()])
    assert path.read_bytes() == before


class Short:
    """A file on a disk with room for ten bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        return self.file.write(data[:10])


def test_a_directory_that_cannot_be_made_is_said_with_its_path(tmp_path):
    (tmp_path / "trajectories").write_text("a file is in the way")
    with pytest.raises(HistoryError, match=r"cannot store trajectories in .*0001.jsonl"):
        append_groups(trajectory_file(tmp_path, "val", 1), [whole_group()])


def test_a_line_is_plain_json_that_other_tools_read(path):
    append_groups(path, [whole_group()])
    line = orjson.loads(path.read_bytes())
    assert line["trajectories"][0]["reward"] == 0.5
    assert line["failures"][0]["reason"] == "timeout"
    assert [file.name for file in path.parent.iterdir()] == ["0012.jsonl"]
