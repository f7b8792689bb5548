"""Which conversation of a trajectory a request goes on with: one whose messages it sends back, or
whose tokens its prompt begins with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from art_core.data.choice import Message, MessageOrChoice, tokens_of
from art_core.data.trajectory import History, Trajectory
from art_core.endpoint.answer import read_answer

_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
"""Kinds of parts of a content that are no part of the answer."""


def add_choice(
    trajectory: Trajectory,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    choice: MessageOrChoice,
) -> None:
    """Append what a request's messages add to the conversation that they go on with, and the choice
    that was the answer. Messages that go on with none begin another conversation.
    """
    for history in reversed(trajectory.histories()):
        if _goes_on(history, messages, choice):
            added = messages[len(history.messages_and_choices) :]
            history.messages_and_choices += [*added, choice]
            break
    else:
        begun = History(messages_and_choices=[*messages, choice], tools=tools)
        trajectory.additional_histories.append(begun)
        return
    if history.messages_and_choices is trajectory.messages_and_choices:
        trajectory.tools = trajectory.tools or tools


def _goes_on(history: History, messages: Sequence[Message], choice: MessageOrChoice) -> bool:
    known = history.messages()
    if len(known) >= len(messages):
        return False
    before = tokens_of(history.messages_and_choices[-1]) if known else None
    now = tokens_of(choice)
    if before and now:
        ids = before.prompt_ids + before.completion_ids
        if now.prompt_ids[: len(ids)] == ids:
            return True
    return [*map(_said, known)] == [*map(_said, messages[: len(known)])]


def _said(message: Message) -> tuple[Any, ...]:
    """Return what a message says in one form: clients send answers back in other ones."""
    role = message.get("role")
    role = "system" if role == "developer" else role
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    called = [(call.get("name"), _parsed(call.get("arguments"))) for call in calls]
    text = _text(message.get("content"))
    if role == "assistant":
        refusal = message.get("refusal") or ""
        text = _without_thoughts(text) + ("" if refusal in text else refusal)
    return role, text.strip(), called


def _without_thoughts(text: str) -> str:
    """Return an answer without its thoughts, which clients may leave out when they send it back."""
    return read_answer(text, {}).content


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _THOUGHTS:
        return ""
    text = part.get(kind, part.get("text")) if kind is not None else part
    return text if isinstance(text, str) else json.dumps(part, sort_keys=True, default=repr)


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (TypeError, ValueError, RecursionError):
        return arguments
