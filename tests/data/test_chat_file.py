"""Files of conversations: what is read, and the error of each bad line."""

import json

import pytest

import art_core as art
from art_core.data.chat_file import messages_of, read_chat_file, read_examples
from art_core.data.store import append_groups

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "cold"}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


@pytest.fixture
def file(tmp_path):
    def write(*lines, end="\n"):
        path = tmp_path / "data.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + end, encoding="utf-8")
        return path

    return write


def test_each_line_is_a_conversation_that_knows_its_line(file):
    path = file({"messages": [ASK, SAY], "id": 7}, "", {"messages": [ASK, CALLS], "tools": TOOLS})
    first, second = read_examples(path)
    assert first.messages() == [ASK, SAY]
    assert first.metadata == {"id": 7, "line": 1}
    assert (second.tools, second.metadata) == (TOOLS, {"line": 3})


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "windows.jsonl"
    line = json.dumps({"messages": [ASK, SAY]}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert [each.metadata["line"] for each in read_examples(path)] == [1, 3]


def test_the_trajectories_of_a_run_are_conversations(tmp_path):
    path = tmp_path / "0001.jsonl"
    choice = {"message": SAY, "finish_reason": "stop"}
    attempts = [art.Trajectory(messages_and_choices=[ASK, choice], reward=r) for r in (0.0, 1.0)]
    append_groups(path, [art.TrajectoryGroup(attempts)])
    found = read_examples(path)
    assert [(t.reward, t.metadata["line"]) for t in found] == [(0.0, 1), (1.0, 1)]
    assert messages_of(found[0].histories()[0]) == [ASK, SAY]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "it is a JSON list, not an object"),
        ('"x"', "it is a JSON text, not an object"),
        ({"prompt": "hi"}, "it has no messages, only prompt"),
        ({}, "it has no messages, only nothing"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hi"}, "at least one message"),
        ({"messages": [ASK]}, "no assistant message to train on"),
        ({"messages": [ASK, {**SAY, "weight": 0}]}, "no assistant message to train on"),
        ({"messages": [ASK, {**SAY, "weight": 2}]}, "message 1 has the weight 2; it is 0 or 1"),
        ({"messages": [ASK, SAY], "functions": []}, "former format. Use tools"),
        ({"messages": [ASK, SAY], "tools": {}}, "tools are a object, not a list"),
        ({"messages": ["hi", SAY]}, "message 0 is a text, not an object"),
        ({"messages": [{"role": "bot"}, SAY]}, "message 0 has the role 'bot'; roles are system"),
        ({"messages": [{**ASK, "content": 7}, SAY]}, "message 0 has a number as content"),
        ({"messages": [{"role": "user"}, SAY]}, "message 0 .user. has neither content nor tool"),
        ({"messages": [ASK, {**SAY, "tool_calls": 1}]}, "a number as tool_calls, not a list"),
        ({"messages": [ASK, {**SAY, "tool_calls": [{}]}]}, "a tool call without a function's"),
        (
            {"messages": [ASK, {**SAY, "tool_calls": [{"function": {"name": "look"}}]}]},
            "message 1 calls 'look' without an id",
        ),
        ({"messages": [ASK, CALLS, ASK, SAY]}, "message 1 calls the tool 'look' .c1., and no tool"),
        ({"messages": [ASK, RESULT, SAY]}, "message 1 answers the tool call 'c1', which no"),
        (
            {"messages": [ASK, {**CALLS, "tool_calls": [CALL, {**CALL, "id": "c2"}]}, RESULT]},
            "message 1 calls the tool 'look' .c2., and no tool message answers it",
        ),
        ({"trajectories": [{}]}, "not a trajectory group"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_its_fault(file, line, said):
    with pytest.raises(art.ConfigError, match=f"1 of 2 conversations.*line 2: .*{said}"):
        read_examples(file({"messages": [ASK, SAY]}, line if line != {} else "{}"))


def test_a_torn_last_line_is_named_and_the_others_are_read(file, caplog):
    path = file({"messages": [ASK, SAY]}, '{"messages": [{"role": "us', end="")
    with pytest.raises(art.ConfigError, match="line 2: it is not JSON.*torn: the file ends in it"):
        read_examples(path)
    assert len(read_examples(path, skip_invalid=True)) == 1
    assert "1 conversations are left out: line 2: it is not JSON" in caplog.text


def test_many_bad_lines_are_counted_and_the_first_are_shown(file):
    with pytest.raises(art.ConfigError, match=r"7 of 8 .*line 6: .*; and 2 more"):
        read_examples(file({"messages": [ASK, SAY]}, *["{}"] * 7))


def test_a_file_without_conversations_is_refused(file, tmp_path):
    with pytest.raises(art.ConfigError, match="holds no conversation"):
        read_examples(file(""))
    with pytest.raises(art.ConfigError, match="line 1"):  # nothing would be left
        read_examples(file("{}"), skip_invalid=True)
    with pytest.raises(art.ConfigError, match="missing.jsonl can't be read: No such file"):
        read_chat_file(tmp_path / "missing.jsonl")


def test_a_conversation_may_end_with_tool_calls_and_may_have_results(file):
    path = file(
        {"messages": [ASK, CALLS]},
        {"messages": [ASK, CALLS, RESULT, SAY]},
        {"messages": [SAY, ASK, SAY]},
    )
    assert len(read_examples(path)) == 3
