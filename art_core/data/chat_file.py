"""Files of conversations: OpenAI's chat format as JSON lines, checked line by line, and the
trajectory files of runs.
"""

from __future__ import annotations

import logging
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.data.trajectory import History, Trajectory, TrajectoryGroup, is_choice, message_of

log = logging.getLogger("art_core")

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_SHOWN = 5
_OLD = {"functions": "tools", "function_call": "tool_calls"}
Problem = tuple[int, str]


@attrs.frozen(kw_only=True)
class ChatFile:
    """The conversations of a file, and the lines that hold none, with the reason of each."""

    examples: list[Trajectory]
    problems: list[Problem]


def read_examples(path: Path, *, skip_invalid: bool = False) -> list[Trajectory]:
    """Return the conversations of a JSON-lines file, each with its `line` in the metadata.

    A line is an object with `messages` and, if tools are called, `tools`, as OpenAI's fine-tuning
    takes it; or a group of trajectories, as runs store them. Raises ConfigError with the number and
    the fault of each bad line; `skip_invalid` leaves those out with a warning.
    """
    found = read_chat_file(path)
    refuse(found.problems, str(path), skip_invalid=skip_invalid, known=len(found.examples))
    return found.examples


def refuse(problems: list[Problem], source: str, *, skip_invalid: bool, known: int) -> None:
    """Raise ConfigError for problems by line, or warn of them with `skip_invalid`."""
    if not problems and known:
        return
    if not problems:
        raise ConfigError(f"{source} holds no conversation", "Give one JSON object per line.")
    text = "; ".join(f"line {line}: {problem}" for line, problem in problems[:MAX_SHOWN])
    more = len(problems) - MAX_SHOWN
    text += f"; and {more} more" if more > 0 else ""
    if not skip_invalid or not known:
        raise ConfigError(
            f"{source}: {len(problems)} of {len(problems) + known} conversations can't be trained: "
            f"{text}",
            "Correct them. skip_invalid=True trains the others.",
        )
    log.warning("%s: %d conversations are left out: %s", source, len(problems), text)


def read_chat_file(path: Path) -> ChatFile:
    """Read a file of conversations; ConfigError if it can't be read."""
    examples: list[Trajectory] = []
    problems: list[Problem] = []
    try:
        lines = list(_lines(path))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    for number, line in lines:
        try:
            for trajectory in _conversations(_object(line)):
                trajectory.metadata["line"] = number
                examples.append(trajectory)
        except ConfigError as error:
            problems.append((number, str(error)))
    return ChatFile(examples=examples, problems=problems)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            plain = line.removeprefix(BOM_UTF8) if number == 1 else line
            if plain.strip():
                yield number, plain


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        torn = "" if line.endswith(b"\n") else "; the line is torn: the file ends in it"
        raise ConfigError(f"it is not JSON ({error}){torn}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"it is a JSON {_kind(value)}, not an object")
    return value


def _conversations(stored: Mapping[str, Any]) -> list[Trajectory]:
    if "trajectories" in stored:
        group = TrajectoryGroup.from_dict(_with_defaults(stored))
        for trajectory in group:
            for history in trajectory.histories():
                check_messages([message_of(item) for item in history.messages_and_choices])
        return list(group)
    return [chat_trajectory(stored)]


def _with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {"failures": [], "metadata": {}, "metrics": {}, "logs": [], **stored}


def chat_trajectory(stored: Mapping[str, Any]) -> Trajectory:
    """Return the conversation of one object in OpenAI's chat format; ConfigError if it is none."""
    if "messages" not in stored:
        raise ConfigError(f"it has no messages, only {', '.join(sorted(stored)[:8]) or 'nothing'}")
    for old, new in _OLD.items():
        if old in stored:
            raise ConfigError(f"{old} is OpenAI's former format", f"Use {new}.")
    messages, tools = stored["messages"], stored.get("tools")
    check_messages(messages)
    if not any(m["role"] == "assistant" and m.get("weight", 1) != 0 for m in messages):
        raise ConfigError("it has no assistant message to train on")
    if tools is not None and not isinstance(tools, list):
        raise ConfigError(f"tools are a {_kind(tools)}, not a list")
    rest = {k: v for k, v in stored.items() if k not in ("messages", "tools")}
    return Trajectory(messages_and_choices=messages, tools=tools or None, metadata=rest)


def check_messages(messages: Any) -> None:
    """Raise ConfigError for what is not a conversation: for a message without a role or text,
    and for tool calls and results that do not belong to each other.

    Calls of the last message need no results: a conversation may end with them.
    """
    if not isinstance(messages, list) or not messages:
        raise ConfigError("messages must be a list of at least one message")
    waiting: dict[str, tuple[int, str]] = {}
    for place, message in enumerate(messages):
        _check_message(place, message)
        if message["role"] == "tool":
            answered = message.get("tool_call_id")
            if waiting.pop(str(answered), None) is None:
                raise ConfigError(f"message {place} answers the tool call {answered!r}, which no "
                                  "message before it makes")  # fmt: skip
            continue
        _check_answered(waiting)
        waiting = {id_: (place, name) for id_, name in _calls(place, message)}
    if waiting and messages[-1]["role"] == "tool":
        _check_answered(waiting)


def _check_answered(waiting: Mapping[str, tuple[int, str]]) -> None:
    for id_, (place, name) in waiting.items():
        raise ConfigError(
            f"message {place} calls the tool {name!r} ({id_}), and no tool message answers it"
        )


def _check_message(place: int, message: Any) -> None:
    if not isinstance(message, dict):
        raise ConfigError(f"message {place} is a {_kind(message)}, not an object")
    role = message.get("role")
    if role not in ROLES:
        raise ConfigError(f"message {place} has the role {role!r}; roles are {', '.join(ROLES)}")
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise ConfigError(f"message {place} has a {_kind(content)} as content, not a text")
    if content is None and not message.get("tool_calls"):
        raise ConfigError(f"message {place} ({role}) has neither content nor tool calls")
    if message.get("weight", 1) not in (0, 1):
        raise ConfigError(f"message {place} has the weight {message['weight']!r}; it is 0 or 1")


def _calls(place: int, message: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ConfigError(f"message {place} has a {_kind(calls)} as tool_calls, not a list")
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ConfigError(
                f"message {place} has a tool call without a function's name: {call!r:.80}"
            )
        if not isinstance(call.get("id"), str):
            raise ConfigError(f"message {place} calls {function['name']!r} without an id")
        yield call["id"], function["name"]


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "bool", type(None): "null"}
    return names.get(type(value), "number")


def messages_of(history: History) -> list[dict[str, Any]]:
    """Return the messages of a conversation in OpenAI's format, with choices as messages."""
    return [
        {k: v for k, v in message_of(item).items() if v is not None or k == "content"}
        if is_choice(item)
        else message_of(item)
        for item in history.messages_and_choices
    ]
