"""Answers that a client such as litellm got, found again with their token ids.

`model.litellm_completion_params()` leads to a recording. An answer that a script puts into a
trajectory is the recorded one with the same conversation before it and the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import art_core
from art.trajectories import Trajectory, TrajectoryGroup, get_messages

Key = tuple[str, ...]


def _line(message: dict[str, Any]) -> str:
    """Return a message as text, without the ids of its tool calls."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    called = [(call["name"], call["arguments"]) for call in calls]
    return json.dumps([message["role"], message["content"], called], default=str)


def _keys(items: list[Any]) -> list[Key]:
    """Return for each item of a conversation what it and those before it are."""
    lines = [_line(message) for message in get_messages(items)]
    return [tuple(lines[: n + 1]) for n in range(len(lines))]


def _is_choice(item: Any) -> bool:
    return (isinstance(item, dict) and "finish_reason" in item) or hasattr(item, "finish_reason")


def _has_tokens(item: Any) -> bool:
    holder = item if isinstance(item, dict) else vars(item) | (item.model_extra or {})
    return bool(holder.get("prompt_token_ids"))


class Heard:
    """The answers of a model's recording since its last training step."""

    def __init__(self, model: art_core.TrainableModel) -> None:
        self._all = Trajectory()
        self._open = ExitStack()
        self.endpoint = self._open.enter_context(model.recording(self._all))

    def fill(self, groups: Iterable[TrajectoryGroup]) -> None:
        """Put recorded answers in the place of those without token ids, and forget all."""
        found: dict[Key, Any] = {}
        for history in self._all.histories():
            items = history.messages_and_choices
            keys = _keys(items)
            found |= {k: item for k, item in zip(keys, items, strict=True) if _is_choice(item)}
        for group in groups:
            for trajectory in group.trajectories:
                for history in trajectory.histories():
                    _fill(history.messages_and_choices, found)
        self._all.messages_and_choices.clear()
        self._all.additional_histories.clear()

    def close(self) -> None:
        """End the recording."""
        self._open.close()


def _fill(items: list[Any], found: dict[Key, Any]) -> None:
    for n, key in enumerate(_keys(items)):
        if _is_choice(items[n]) and not _has_tokens(items[n]):
            items[n] = found.get(key, items[n])
