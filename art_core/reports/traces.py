"""Recorded conversations of other programs as trajectories: OpenAI's JSON lines, OpenTelemetry's
GenAI spans, exports of Langfuse, and trajectory files of runs.

The outcome of a conversation is unknown (`reward` is NaN) unless the recording has a score for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.data.chat_file import Problem, chat_trajectory, check_messages
from art_core.data.trajectory import History, Trajectory, TrajectoryGroup
from art_core.reports import otel

Record = Mapping[str, Any]
Message = dict[str, Any]
UNKNOWN = math.nan
SCORES = ("reward", "score")
"""The names of a conversation's outcome in OpenAI's lines."""
_ROLES = {"human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}


@attrs.frozen(kw_only=True)
class Traces:
    """The trajectories of a file by the format that it was read in, and what can't be read, by the
    number of the line or record.
    """

    format: str
    trajectories: list[Trajectory]
    problems: list[Problem]


@attrs.define
class Exchange:
    """A call of a model: the messages that it got, its answer, and the tools."""

    prompt: list[Message]
    answer: list[Message]
    tools: list[Any] | None = None


def read_traces(path: Path, form: str | None = None, reward: str | None = None) -> Traces:
    """Read a file; `form` is one of `FORMATS`, by default that of its first record. `reward` names
    the score that is the outcome; by default "reward", or the only score that there is.

    Raises ConfigError for a file that can't be read and a format that is not known.
    """
    records, problems = _records(path)
    if not records:
        found = f": line {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise ConfigError(f"{path} holds no JSON objects{found}", "Give JSON, or JSON lines.")
    form = form or _format_of(records[0][1])
    if form is None:
        keys = ", ".join(sorted(records[0][1])[:8])
        raise ConfigError(
            f"the format of {path} is not known: its first record has {keys}",
            f"Give --format: {', '.join(FORMATS)}.",
        )
    trajectories: list[Trajectory] = []
    for number, read in FORMATS[form](records, reward):
        try:
            trajectory = read()
            for history in trajectory.histories():
                check_messages(history.messages())
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            problems.append((number, f"{kind}{error}"))
        else:
            trajectory.metadata.setdefault("imported_from", form)
            trajectories.append(trajectory)
    return Traces(format=form, trajectories=trajectories, problems=sorted(problems))


def _records(path: Path) -> tuple[list[tuple[int, Record]], list[Problem]]:
    """Return the objects of a JSON document or of JSON lines, and the lines that hold none."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        whole = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _of_lines(data)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]  # a page of an API
    items = whole if isinstance(whole, list) else [whole]
    return [(n, item) for n, item in enumerate(items, 1) if isinstance(item, dict)], []


def _of_lines(data: bytes) -> tuple[list[tuple[int, Record]], list[Problem]]:
    records: list[tuple[int, Record]] = []
    problems: list[Problem] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            problems.append((number, f"it is not JSON ({error})"))
            continue
        if isinstance(value, dict):
            records.append((number, value))
        else:
            problems.append((number, "it is not a JSON object"))
    return records, problems


def _format_of(record: Record) -> str | None:
    if "trajectories" in record:
        return "run"
    if "resourceSpans" in record or ("attributes" in record and "name" in record):
        return "otel"
    if "observations" in record or {"traceId", "type"} <= record.keys():
        return "langfuse"
    if "input" in record and ("scores" in record or "projectId" in record):
        return "langfuse"
    if "messages" in record or {"request", "response"} <= record.keys():
        return "openai"
    return None


Read = Iterator[tuple[int, Callable[[], Trajectory]]]


def _from_run(records: list[tuple[int, Record]], reward: str | None) -> Read:
    """Yield the attempts of trajectory files, with the metadata of their groups."""
    del reward
    for number, record in records:
        filled = {"failures": [], "metadata": {}, "metrics": {}, "logs": [], **record}
        for place in range(len(record["trajectories"])):
            yield number, partial(of_group, filled, place)


def of_group(stored: Record, place: int) -> Trajectory:
    """Return one trajectory of a stored group."""
    group = TrajectoryGroup.from_dict(stored)
    trajectory = group.trajectories[place]
    trajectory.metadata = {**group.metadata, **trajectory.metadata}
    return trajectory


def _from_openai(records: list[tuple[int, Record]], reward: str | None) -> Read:
    for number, record in records:
        yield number, partial(_openai, record, reward)


def _openai(record: Record, reward: str | None) -> Trajectory:
    stored = dict(record)
    if "messages" not in stored:  # a log of requests and responses
        request, response = stored.pop("request"), stored.pop("response")
        request, response = request.get("body", request), response.get("body", response)
        answer = response["choices"][0]["message"]
        stored |= {"messages": [*request["messages"], _plain(answer)]}
        stored |= {"tools": request.get("tools"), "model": response.get("model")}
    trajectory = chat_trajectory(stored)
    names = [reward] if reward else SCORES
    scores = [stored[name] for name in names if isinstance(stored.get(name), int | float)]
    trajectory.reward = float(scores[0]) if scores else UNKNOWN
    return trajectory


def _from_otel(records: list[tuple[int, Record]], reward: str | None) -> Read:
    traces: dict[str, list[otel.Span]] = {}
    places: dict[str, int] = {}
    for number, record in records:
        for span in otel.spans_of(record):
            traces.setdefault(span.trace, []).append(span)
            places.setdefault(span.trace, number)
    for trace, spans in traces.items():
        spans.sort(key=lambda span: span.start)
        if any(span.is_call for span in spans):
            yield places[trace], partial(_otel, trace, spans, reward)


def _otel(trace: str, spans: Iterable[otel.Span], reward: str | None) -> Trajectory:
    exchanges: list[Exchange] = []
    scores: dict[str, float] = {}
    metadata: dict[str, Any] = {"trace_id": trace}
    for span in spans:
        scores |= span.scores
        if span.is_call:
            exchanges.append(Exchange(*otel.messages_of(span), otel.tools_of(span)))
            metadata.setdefault("model", span.attributes.get(otel.REQUEST_MODEL))
    return conversation(exchanges, scores, metadata, reward)


def _from_langfuse(records: list[tuple[int, Record]], reward: str | None) -> Read:
    """Yield traces with their observations, or observations by their trace."""
    traces: dict[str, dict[str, Any]] = {}
    places: dict[str, int] = {}
    for number, record in records:
        whole = "traceId" not in record
        trace = str(record.get("id") if whole else record["traceId"])
        places.setdefault(trace, number)
        if whole:
            traces[trace] = dict(record)
        else:
            traces.setdefault(trace, {"id": trace}).setdefault("observations", []).append(record)
    for trace, record in traces.items():
        yield places[trace], partial(_langfuse, record, reward)


def _langfuse(trace: Record, reward: str | None) -> Trajectory:
    observations = sorted(trace.get("observations") or (), key=lambda o: str(o.get("startTime")))
    calls = [o for o in observations if o.get("type") == "GENERATION"] or [trace]
    exchanges = [_langfuse_exchange(call) for call in calls]
    scores = {
        str(score["name"]): float(score["value"])
        for score in trace.get("scores") or ()
        if isinstance(score, dict) and isinstance(score.get("value"), int | float)
    }
    metadata = {"trace_id": trace.get("id"), "name": trace.get("name"), "tags": trace.get("tags")}
    if isinstance(trace.get("metadata"), dict):
        metadata = {**trace["metadata"], **metadata}
    models = [call.get("model") for call in calls if call.get("model")]
    metadata |= {"model": models[0]} if models else {}
    return conversation(exchanges, scores, metadata, reward)


def _langfuse_exchange(call: Record) -> Exchange:
    given, tools = call.get("input"), None
    if isinstance(given, dict) and "messages" in given:
        given, tools = given["messages"], given.get("tools")
    answer = call.get("output")
    if isinstance(answer, dict) and "choices" in answer:
        answer = answer["choices"][0]["message"]
    prompt = _messages(given, "user")
    said = _messages(answer, "assistant")
    if not prompt or not said:
        raise ConfigError("a generation has no input or no output")
    return Exchange(prompt, said, tools)


def _messages(value: Any, role: str) -> list[Message]:
    """Return recorded messages: a list, one message, or a text of the role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    items = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    return [_plain({"role": role, **item}) for item in items if isinstance(item, dict)]


def _plain(message: Record) -> Message:
    """Return a message without empty fields, its role by OpenAI's name, arguments as text."""
    plain = {k: v for k, v in message.items() if v not in (None, [], {}) or k == "content"}
    plain["role"] = _ROLES.get(plain["role"], plain["role"])
    content = plain.get("content")
    if isinstance(content, dict):
        plain["content"] = json.dumps(content)
    for call in plain.get("tool_calls") or ():
        function = call.get("function") or {}
        if isinstance(function.get("arguments"), dict):
            function["arguments"] = json.dumps(function["arguments"])
    return plain


def conversation(
    exchanges: list[Exchange],
    scores: Mapping[str, float],
    metadata: Mapping[str, Any],
    reward: str | None,
) -> Trajectory:
    """Return the trajectory of calls in their order: one that continues the messages of an earlier
    one extends its conversation, another begins one of the additional histories.
    """
    histories: list[History] = []
    for call in exchanges:
        for history in histories:
            known = history.messages_and_choices
            if _alike(call.prompt[: len(known)], known):
                history.messages_and_choices = [*known, *call.prompt[len(known) :], *call.answer]
                history.tools = call.tools or history.tools
                break
        else:
            messages = [*call.prompt, *call.answer]
            histories.append(History(messages_and_choices=messages, tools=call.tools or None))
    name = reward or ("reward" if "reward" in scores else None)
    if name is None and len(scores) == 1:
        name = next(iter(scores))
    main, *others = histories
    return Trajectory(
        messages_and_choices=main.messages_and_choices,
        tools=main.tools,
        additional_histories=others,
        reward=scores.get(name or "", UNKNOWN),
        metrics={k: v for k, v in scores.items() if k != "reward"},
        metadata={k: v for k, v in metadata.items() if v is not None},
    )


def _alike(some: list[Message], others: list[Message]) -> bool:
    keys = ("role", "content", "tool_call_id")
    return len(some) == len(others) and all(
        [a.get(k) or None for k in keys] == [b.get(k) or None for k in keys]
        for a, b in zip(some, others, strict=True)
    )


FORMATS: Mapping[str, Callable[[list[tuple[int, Record]], str | None], Read]] = {
    "openai": _from_openai,
    "otel": _from_otel,
    "langfuse": _from_langfuse,
    "run": _from_run,
}
