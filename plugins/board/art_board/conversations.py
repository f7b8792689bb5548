"""Trajectories as the page shows them: groups with their rewards, one attempt, a search."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from art_core import LoggedRun, TrajectoryGroup

MAX_HITS = 50
SEARCH_S = 4.0
_AROUND = 60
_SHOWN = 200
Item = Mapping[str, Any]


def stored_steps(run: LoggedRun) -> dict[str, list[int]]:
    """Return the steps with stored trajectories, by split."""
    return {split: run.steps(split) for split in run.splits()}


def groups_of(run: LoggedRun, split: str, step: int) -> list[dict[str, Any]]:
    """Return the groups of a step: of each attempt its reward, metrics and size, and how each
    rollout failed.
    """
    return groups_in(run.groups(step, split))


def groups_in(groups: Iterable[TrajectoryGroup]) -> list[dict[str, Any]]:
    """Return groups as `groups_of` does."""
    return [_group(number, group) for number, group in enumerate(groups)]


def _group(number: int, group: TrajectoryGroup) -> dict[str, Any]:
    stored = group.to_dict(tokens=False)
    return {
        "group": number,
        "scenario": _scenario(group, number),
        "metadata": _printable(group.metadata),
        "asked": _asked(group),
        "attempts": [
            {
                "place": place,
                "reward": _number(trajectory.total_reward),
                "metrics": {k: _number(v) for k, v in trajectory.metrics.items()},
                "turns": trajectory.num_turns(),
                "cut_off": any(map(_is_cut_off, items["messages_and_choices"])),
                "usd": trajectory.metadata.get("usd"),
            }
            for place, (trajectory, items) in enumerate(
                zip(group.trajectories, stored["trajectories"], strict=True)
            )
        ],
        "failures": [
            {"reason": f.reason, "type": f.type, "message": f.message, "traceback": f.traceback}
            for f in group.failures
        ],
    }


def _asked(group: TrajectoryGroup) -> str:
    """Return the beginning of the first text of a user in a group; "" without one."""
    for trajectory in group.trajectories:
        for message in trajectory.messages():
            if message.get("role") == "user":
                return text_of(message.get("content"))[:_SHOWN]
    return ""


def _scenario(group: TrajectoryGroup, number: int) -> str:
    return str(group.metadata.get("scenario_id", f"group {number + 1}"))


def attempt_of(run: LoggedRun, split: str, step: int, group: int, place: int) -> dict[str, Any]:
    """Return one attempt as conversations. LookupError if the step has none at this place."""
    groups = run.groups(step, split)
    if not (0 <= group < len(groups) and 0 <= place < len(groups[group])):
        raise LookupError(f"step {step} of {split!r} has no attempt {place} in group {group}")
    return whole_attempt(groups[group], group, place)


def whole_attempt(found: TrajectoryGroup, group: int, place: int) -> dict[str, Any]:
    """Return an attempt of a group with every message, token, log line and reward."""
    trajectory = found.trajectories[place]
    stored: dict[str, Any] = found.to_dict()["trajectories"][place]
    turns = iter(trajectory.turn_rewards)
    main: dict[str, Any] = stored
    others: list[dict[str, Any]] = stored["additional_histories"]
    return {
        "scenario": _scenario(found, group),
        "reward": _number(trajectory.total_reward),
        "rewards": [_number(reward) for reward in found.rewards],
        "metrics": {k: _number(v) for k, v in trajectory.metrics.items()},
        "metadata": _printable(trajectory.metadata),
        "policy": [trajectory.initial_policy_version, trajectory.final_policy_version],
        "tools": [_tool_name(tool) for tool in trajectory.tools or ()],
        "logs": [str(line) for line in trajectory.logs],
        "conversation": [_message(item, turns) for item in main["messages_and_choices"]],
        "others": [[_message(i, iter(())) for i in h["messages_and_choices"]] for h in others],
    }


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "?")) if isinstance(function, Mapping) else "?"


def _is_choice(item: Item) -> bool:
    return "message" in item and "finish_reason" in item


def _is_cut_off(item: Item) -> bool:
    return _is_choice(item) and item["finish_reason"] == "length"


def _message(item: Item, turns: Iterator[float]) -> dict[str, Any]:
    sampled = _is_choice(item)
    message = item["message"] if sampled else item
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    shown: dict[str, Any] = {
        "role": str(message.get("role", "assistant" if sampled else "?")),
        "name": message.get("name"),
        "text": text_of(message.get("content")),
        "thoughts": text_of(message.get("reasoning_content") or message.get("reasoning")),
        "calls": [
            {"name": str(c.get("name")), "arguments": _code(c.get("arguments"))} for c in calls
        ],
    }
    if sampled:
        shown |= {"sampled": True, "cut_off": _is_cut_off(item), "reward": next(turns, None)}
        shown["tokens"] = _tokens(item)
        shown["policy"] = item.get("policy_version")
    return shown


def _tokens(item: Item) -> list[list[Any]]:
    """Return the sampled tokens, each with its text, log-prob, id and a teacher's log-prob."""
    content = (item.get("logprobs") or {}).get("content") or []
    ids = item.get("token_ids") or [None] * len(content)
    scores = item.get("teacher_logprobs") or [None] * len(content)
    return [
        [str(entry.get("token", "")), _number(entry.get("logprob")), token, score]
        for entry, token, score in zip(content, ids, scores, strict=False)
    ]


def text_of(content: Any) -> str:
    """Return the text of a message's content; other parts as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        parts = [p.get("text") if isinstance(p, Mapping) else p for p in content]
        texts = [_code(p) if text is None else text for p, text in zip(content, parts, strict=True)]
        return "\n".join(map(str, texts))
    return _code(content)


def _code(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, indent=1)


def _printable(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): text_of(value) for key, value in values.items()}


def _number(value: Any) -> float | None:
    """Return a finite number; None for an unknown one."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None


def search(run: LoggedRun, text: str, split: str, before: int | None = None) -> dict[str, Any]:
    """Find a text in conversations, failures and logs of a split, from the newest step backwards.

    Stops after some seconds or hits; `next` is the step from which another call goes on, or None.
    """
    hits: list[dict[str, Any]] = []
    wanted, end = text.lower(), time.monotonic() + SEARCH_S
    steps = [step for step in run.steps(split) if before is None or step <= before]
    for step in reversed(steps):
        if time.monotonic() > end or len(hits) >= MAX_HITS:
            return {"hits": hits, "next": step}
        for number, group in enumerate(run.groups(step, split)):
            hits += [{"step": step, "split": split} | hit for hit in _hits(group, number, wanted)]
    return {"hits": hits, "next": None}


def _hits(group: TrajectoryGroup, number: int, wanted: str) -> Iterator[dict[str, Any]]:
    scenario = _scenario(group, number)
    for place, trajectory in enumerate(group.trajectories):
        texts = [*trajectory.logs, scenario]
        for history in trajectory.histories():
            texts += [_searched(message) for message in history.messages()]
        if (found := _found(texts, wanted)) is not None:
            reward = _number(trajectory.total_reward)
            yield {"group": number, "place": place, "reward": reward, "text": found}
    for failure in group.failures:
        if (found := _found([str(failure), failure.traceback], wanted)) is not None:
            yield {"group": number, "place": None, "reward": None, "text": found}


def _searched(message: Any) -> str:
    calls = "".join(_code(call.get("function")) for call in message.get("tool_calls") or ())
    return text_of(message.get("content")) + calls


def _found(texts: Sequence[str], wanted: str) -> str | None:
    for text in texts:
        at = text.lower().find(wanted)
        if at >= 0:
            return text[max(0, at - _AROUND) : at + len(wanted) + _AROUND]
    return None
