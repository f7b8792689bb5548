"""The spans of a row and of its attempts, as plain values, by the semantic conventions for
generative AI.

An attempt is a trace: `invoke_agent`, with a child `chat` for each call of the model and a child
`execute_tool` for each result of a tool. A row is a trace of one span, which links to its attempts.
The ids are digests, so that a span that is sent again is the same span. Trajectories have a start
and an end, their calls have no times: each child gets an equal share of the attempt, and
`art.times` is "estimated".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import attrs

from art_core import History, MetricsRow, RolloutFailure, RunInfo, Trajectory, TrajectoryGroup
from art_core.reports import otel
from art_otel.messages import as_json, definitions_of, messages_of_parts, value_of

Value = str | int | float | bool | list[str]
Message = Mapping[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class SpanEvent:
    """An event of a span, at a time in nanoseconds."""

    name: str
    at: int
    attributes: dict[str, Value]


@attrs.frozen(kw_only=True)
class SpanDraft:
    """A span before OpenTelemetry has it. Times are nanoseconds since 1970.

    `content` has the attributes with messages, which are sent on request; `input` and `output` are
    the same as OpenAI's messages, or a tool's arguments and result. `scores` are named numbers of
    the attempt or call. `error` describes a failure. `links` are the (trace, span) ids of others.
    """

    kind: Literal["row", "attempt", "call", "tool"]
    name: str
    trace: int
    id: int
    parent: int | None = None
    start: int
    end: int
    attributes: dict[str, Value]
    content: dict[str, Value] = attrs.field(factory=dict)
    input: Any = None
    output: Any = None
    scores: dict[str, float] = attrs.field(factory=dict)
    events: tuple[SpanEvent, ...] = ()
    error: str | None = None
    links: tuple[tuple[int, int], ...] = ()


@attrs.frozen(kw_only=True)
class Place:
    """The place of an attempt: the id of its run's traces, the row, the numbers of its group and of
    the attempt in it.
    """

    run: RunInfo
    traces: str
    row: MetricsRow
    group: int
    number: int

    def attributes(self) -> dict[str, Value]:
        """Return the attributes of the place."""
        return {
            **row_attributes(self.row),
            "art.group": self.group,
            "art.attempt": self.number,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self.run.name,
        }

    def trace(self, *more: object) -> int:
        """Return the id of the attempt's trace."""
        row = self.row
        return digest(16, self.traces, row.split, row.step, self.group, self.number, *more)


def digest(size: int, *parts: object) -> int:
    """Return an id of some bytes, never 0, that depends only on the parts."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest(), "big") or 1


def nanoseconds(moment: datetime) -> int:
    """Return a time as nanoseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def row_attributes(row: MetricsRow) -> dict[str, Value]:
    """Return the attributes of a row that its attempts have too."""
    return {"art.step": row.step, "art.split": row.split, "art.run_attempt": row.attempt}


def row_span(traces: str, row: MetricsRow, attempts: Iterable[SpanDraft] = ()) -> SpanDraft:
    """Return the span of a row: its metrics, costs among them, as `art.metric.<key>`."""
    end = nanoseconds(row.recorded_at)
    seconds = max(0.0, row.metrics.get("time/step_wall_s", 0.0))
    trace = digest(16, traces, "row", row.seq or (row.attempt, row.split, row.step, end))
    return SpanDraft(
        kind="row",
        name=f"{row.split} step",
        trace=trace,
        id=digest(8, trace),
        start=max(0, end - int(min(seconds, 1e9) * 1e9)),
        end=end,
        attributes={
            **row_attributes(row),
            "art.seq": row.seq,
            **{f"art.metric.{key}": float(value) for key, value in row.metrics.items()},
        },
        links=tuple((span.trace, span.id) for span in attempts),
    )


def group_spans(
    run: RunInfo, traces: str, row: MetricsRow, number: int, group: TrajectoryGroup
) -> Iterator[list[SpanDraft]]:
    """Yield the spans of each attempt of a group, the attempt's own first; failures come last."""
    about = _flat("art.group", group.metadata)
    starts = [trajectory.start_time for trajectory in group.trajectories]
    for index, trajectory in enumerate(group.trajectories):
        place = Place(run=run, traces=traces, row=row, group=number, number=index)
        yield attempt_spans(place, trajectory, about)
    for index, failure in enumerate(group.failures, start=len(group)):
        place = Place(run=run, traces=traces, row=row, group=number, number=index)
        at = nanoseconds(min(starts, default=row.recorded_at))
        yield [_failure_span(place, failure, at, about)]


def attempt_spans(
    place: Place, trajectory: Trajectory, about: Mapping[str, Value] | None = None
) -> list[SpanDraft]:
    """Return the spans of a trajectory: the attempt, then its calls in their order."""
    start = nanoseconds(trajectory.start_time)
    end = max(start, nanoseconds(trajectory.end_time or trajectory.start_time))
    trace = place.trace(start)
    metrics = {k: float(v) for k, v in trajectory.metrics.items() if math.isfinite(v)}
    known = not math.isnan(trajectory.total_reward)
    rewards = {"reward": trajectory.total_reward} if known else {}
    model = str(trajectory.metadata.get("model") or place.run.base_model or place.run.name)
    versions = {
        "art.initial_policy_version": trajectory.initial_policy_version,
        "art.final_policy_version": trajectory.final_policy_version,
    }
    logs = [SpanEvent(name="art.log", at=end, attributes={"art.log": t}) for t in trajectory.logs]
    attempt = SpanDraft(
        kind="attempt",
        name=f"invoke_agent {place.run.name}",
        trace=trace,
        id=digest(8, trace),
        start=start,
        end=end,
        attributes={
            **place.attributes(),
            otel.REQUEST_MODEL: model,
            **{f"art.{name}": value for name, value in rewards.items()},
            **{f"art.metric.{name}": value for name, value in metrics.items()},
            **{name: value for name, value in versions.items() if value is not None},
            **(about or {}),
            **_flat("art.metadata", trajectory.metadata),
        },
        scores=rewards,
        events=(*(_evaluation(k, v, end) for k, v in {**metrics, **rewards}.items()), *logs),
    )
    steps = [step for history in trajectory.histories() for step in _steps(history)]
    children = [
        _child(attempt, step, model, number, len(steps)) for number, step in enumerate(steps)
    ]
    for child, reward in zip(_turns(trajectory, children), trajectory.turn_rewards, strict=False):
        child.attributes["art.turn_reward"] = reward
        child.scores["turn_reward"] = reward
    said = [child for child in children if child.kind == "call"]
    if not said:
        return [attempt]
    whole = attrs.evolve(attempt, input=said[0].input, output=_turns(trajectory, said)[-1].output)
    return [whole, *children]


def _turns(trajectory: Trajectory, children: Sequence[SpanDraft]) -> list[SpanDraft]:
    """Return the calls of the main conversation, which come first."""
    calls = [child for child in children if child.kind == "call"]
    turns = sum(1 for _ in _calls(trajectory.histories()[0]))
    return calls[:turns] or calls


@attrs.frozen(kw_only=True)
class _Step:
    """A call of the model, or the result of a tool: the messages before it, and its own."""

    before: list[Message]
    item: Message
    message: Message
    tools: list[dict[str, Any]] | None


def _calls(history: History) -> Iterator[int]:
    """Yield the places of a conversation's calls: its choices, else its assistant's messages."""
    items = history.messages_and_choices
    choices = [place for place, item in enumerate(items) if _is_choice(item)]
    said = (place for place, item in enumerate(items) if item.get("role") == "assistant")
    yield from choices or said


def _is_choice(item: Message) -> bool:
    return "message" in item and "finish_reason" in item


def _steps(history: History) -> Iterator[_Step]:
    calls = set(_calls(history))
    first = min(calls, default=math.inf)
    messages = history.messages()
    for place, item in enumerate(history.messages_and_choices):
        if place in calls or (place > first and item.get("role") == "tool"):
            yield _Step(
                before=messages[:place],
                item=item,
                message=messages[place],
                tools=history.tools,
            )


def _child(attempt: SpanDraft, step: _Step, model: str, number: int, count: int) -> SpanDraft:
    whole = attempt.end - attempt.start
    start = attempt.start + max(number, number * whole // count)
    tool = step.message.get("role") == "tool"
    made = _tool_call(step) if tool else _model_call(step, model)
    return SpanDraft(
        trace=attempt.trace,
        id=digest(8, attempt.trace, number),
        parent=attempt.id,
        start=start,
        end=max(start, attempt.start + (number + 1) * whole // count),
        **made,
    )


def _model_call(step: _Step, model: str) -> dict[str, Any]:
    item = step.item
    prompt, sampled = (len(item.get(name) or ()) for name in ("prompt_token_ids", "token_ids"))
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "art",
        otel.REQUEST_MODEL: model,
        "art.times": "estimated",
    }
    if prompt:
        attributes |= {"gen_ai.usage.input_tokens": prompt, "gen_ai.usage.output_tokens": sampled}
    answer = messages_of_parts([step.message])
    if reason := item.get("finish_reason"):
        attributes["gen_ai.response.finish_reasons"] = [str(reason)]
        answer[0]["finish_reason"] = str(reason)
    if (version := item.get("policy_version")) is not None:
        attributes["art.policy_version"] = version
    content: dict[str, Value] = {
        otel.INPUT_MESSAGES: as_json(messages_of_parts(step.before)),
        otel.OUTPUT_MESSAGES: as_json(answer),
    }
    if step.tools:
        content[otel.TOOL_DEFINITIONS] = as_json(definitions_of(step.tools))
    return {
        "kind": "call",
        "name": f"chat {model}",
        "attributes": attributes,
        "content": content,
        "input": {"messages": step.before, "tools": step.tools} if step.tools else step.before,
        "output": step.message,
    }


def _tool_call(step: _Step) -> dict[str, Any]:
    identifier = step.message.get("tool_call_id")
    calls = (call for message in reversed(step.before) for call in message.get("tool_calls") or ())
    call: Message = next((c for c in calls if c.get("id") == identifier), {})
    function = call.get("function") or {}
    name = str(function.get("name") or step.message.get("name") or "unknown")
    arguments, result = value_of(function.get("arguments")), step.message.get("content")
    return {
        "kind": "tool",
        "name": f"execute_tool {name}",
        "attributes": {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": str(identifier),
            "art.times": "estimated",
        },
        "content": {
            "gen_ai.tool.call.arguments": as_json(arguments),
            "gen_ai.tool.call.result": result if isinstance(result, str) else as_json(result),
        },
        "input": arguments,
        "output": result,
    }


def _failure_span(
    place: Place, failure: RolloutFailure, at: int, about: Mapping[str, Value]
) -> SpanDraft:
    trace = place.trace("failure", failure.type, failure.message)
    exception: dict[str, Value] = {
        "exception.type": failure.type,
        "exception.message": failure.message,
        "exception.stacktrace": failure.traceback,
    }
    return SpanDraft(
        kind="attempt",
        name=f"invoke_agent {place.run.name}",
        trace=trace,
        id=digest(8, trace),
        start=at,
        end=at,
        attributes={
            **place.attributes(),
            "error.type": failure.type,
            "art.failure": failure.reason,
            **about,
        },
        events=(SpanEvent(name="exception", at=at, attributes=exception),),
        error=str(failure),
    )


def _evaluation(name: str, value: float, at: int) -> SpanEvent:
    attributes: dict[str, Value] = {otel.EVALUATION_NAME: name, otel.EVALUATION_SCORE: value}
    return SpanEvent(name=otel.EVALUATION, at=at, attributes=attributes)


def _flat(prefix: str, given: Mapping[str, Any]) -> dict[str, Value]:
    """Return metadata as attributes; other values than texts and numbers are JSON."""
    return {f"{prefix}.{key}": _plain(value) for key, value in given.items() if value is not None}


def _plain(value: Any) -> Value:
    if isinstance(value, str | bool | float):
        return value
    small = isinstance(value, int) and abs(value) < 2**63
    return value if small else as_json(value)
