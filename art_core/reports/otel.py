"""OpenTelemetry spans of model calls, by the semantic conventions for generative AI.

Messages are in the attributes `gen_ai.input.messages` and `gen_ai.output.messages`, in events
(`gen_ai.user.message`, `gen_ai.choice`, ...), or in numbered attributes (`gen_ai.prompt.0.role`),
as instrumentations of the years write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

Message = dict[str, Any]
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_DEFINITIONS = "gen_ai.tool.definitions"
REQUEST_MODEL = "gen_ai.request.model"
EVALUATION = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE = "gen_ai.evaluation.score.value"
_NUMBERED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(.+)")
_CALL = re.compile(r"tool_calls\.(\d+)\.(id|name|arguments)")
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message|gen_ai\.choice")


@attrs.frozen(kw_only=True)
class Span:
    """A span: its trace, start, attributes, and events as (name, attributes)."""

    trace: str
    start: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]

    @property
    def is_call(self) -> bool:
        """Whether it is a model call whose messages were recorded."""
        names = {*self.attributes, *(key for _, of in self.events for key in of)}
        return (
            not {INPUT_MESSAGES, OUTPUT_MESSAGES}.isdisjoint(names)
            or any(map(_NUMBERED.fullmatch, self.attributes))
            or any(_EVENT.fullmatch(name) for name, _ in self.events)
        )

    @property
    def scores(self) -> dict[str, float]:
        """The numbers of evaluations, by name."""
        found = [("", self.attributes), *self.events]
        scores = [(of.get(EVALUATION_NAME), _score(of)) for _, of in found]
        return {str(name or "score"): value for name, value in scores if value is not None}


def _score(attributes: Mapping[str, Any]) -> float | None:
    value = attributes.get(EVALUATION_SCORE)
    return float(value) if isinstance(value, int | float) else None


def spans_of(record: Mapping[str, Any]) -> Iterator[Span]:
    """Yield the spans of a record: an OTLP request, or a span as an SDK prints it."""
    if "resourceSpans" not in record:
        yield _span(record)
        return
    for resource in record["resourceSpans"]:
        for scope in resource.get("scopeSpans") or ():
            for span in scope.get("spans") or ():
                yield _span(span)


def _span(span: Mapping[str, Any]) -> Span:
    context = span.get("context") or span
    trace = context.get("traceId") or context.get("trace_id") or ""
    start = span.get("startTimeUnixNano") or span.get("start_time") or ""
    events = [
        (str(event.get("name")), _attributes(event.get("attributes")))
        for event in span.get("events") or ()
    ]
    return Span(
        trace=str(trace),
        start=str(start).rjust(32, "0"),  # nanoseconds compare as texts of equal length
        attributes=_attributes(span.get("attributes")),
        events=events,
    )


def _attributes(given: Any) -> dict[str, Any]:
    if isinstance(given, list):
        return {str(item["key"]): _value(item.get("value")) for item in given}
    return dict(given or {})


def _value(value: Any) -> Any:
    """Return a value of OTLP's JSON."""
    ((kind, content),) = (value or {"": None}).items()
    if kind == "intValue":
        return int(content)
    if kind == "arrayValue":
        return [_value(item) for item in content.get("values", ())]
    if kind == "kvlistValue":
        return {item["key"]: _value(item.get("value")) for item in content.get("values", ())}
    return content


def _json(value: Any) -> Any:
    """Return a structured attribute, which most exporters write as text."""
    return json.loads(value) if isinstance(value, str) else value


def tools_of(span: Span) -> list[Any] | None:
    """Return the tools of a call in OpenAI's form."""
    tools = _json(span.attributes.get(TOOL_DEFINITIONS)) or []
    return [
        tool
        if "function" in tool
        else {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        for tool in tools
    ] or None


def messages_of(span: Span) -> tuple[list[Message], list[Message]]:
    """Return the messages that a call got, and those that it answered; ValueError without both."""
    prompt, answer = _structured(span)
    if not answer:
        prompt, answer = _of_events(span)
    if not answer:
        prompt, answer = _numbered(span)
    if not prompt or not answer:
        raise ValueError("a call has no recorded prompt or no recorded answer")
    return prompt, answer


def _structured(span: Span) -> tuple[list[Message], list[Message]]:
    found = dict(span.attributes)
    for _, attributes in span.events:
        found |= {k: v for k, v in attributes.items() if k.startswith("gen_ai.")}
    system = _json(found.get("gen_ai.system_instructions")) or []
    text = system if isinstance(system, str) else "".join(p.get("content") or "" for p in system)
    prompt = [{"role": "system", "content": text}] if text else []
    for message in _json(found.get(INPUT_MESSAGES)) or ():
        prompt += _of_parts(message)
    said = _json(found.get(OUTPUT_MESSAGES)) or []
    return prompt, [each for message in said[:1] for each in _of_parts(message)]


def _of_parts(message: Mapping[str, Any]) -> list[Message]:
    """Return a message of parts as OpenAI's messages; each result of a tool is one of its own."""
    parts = message.get("parts") or ()
    made: Message = {"role": message["role"], "content": _content(parts)}
    results: list[Message] = []
    for part in parts:
        kind = part.get("type")
        if kind == "reasoning":
            made["reasoning_content"] = str(part.get("content") or "")
        elif kind == "tool_call":
            made.setdefault("tool_calls", []).append(_tool_call(part))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            results.append(
                {"role": "tool", "tool_call_id": str(part.get("id")), "content": _text(result)}
            )
    empty = made["content"] is None and "tool_calls" not in made
    return results if empty and results else [made, *results]


def _content(parts: Iterable[Mapping[str, Any]]) -> str | list[Message] | None:
    """Return the texts of parts as one, or texts and images as a list; None if there are none."""
    found: list[Message] = []
    for part in parts:
        if part.get("type") == "text":
            found.append({"type": "text", "text": str(part.get("content") or "")})
        elif part.get("modality") == "image" and (url := _url(part)):
            found.append({"type": "image_url", "image_url": {"url": url}})
    if any(item["type"] == "image_url" for item in found):
        return found
    return "".join(item["text"] for item in found) if found else None


def _url(part: Mapping[str, Any]) -> str | None:
    data = part.get("content")
    inline = f"data:{part.get('mime_type') or 'image/png'};base64,{data}"
    return inline if data else part.get("uri")


def _tool_call(part: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": part.get("name"), "arguments": _text(part.get("arguments", {}))}
    return {"id": str(part.get("id")), "type": "function", "function": function}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_events(span: Span) -> tuple[list[Message], list[Message]]:
    prompt: list[Message] = []
    answer: list[Message] = []
    for name, attributes in span.events:
        if not (match := _EVENT.fullmatch(name)):
            continue
        body = {**attributes, **(_json(attributes.get("body")) or {})}
        if match[1] is None:
            answer = answer or [_event_message("assistant", _json(body.get("message")) or body)]
        else:
            prompt.append(_event_message(match[1], body))
    return prompt, answer


def _event_message(role: str, body: Mapping[str, Any]) -> Message:
    message: Message = {"role": role, "content": body.get("content")}
    if calls := _json(body.get("tool_calls")):
        message["tool_calls"] = calls
    if role == "tool":
        message["tool_call_id"] = str(body.get("id"))
    return message


def _numbered(span: Span) -> tuple[list[Message], list[Message]]:
    parts: dict[tuple[str, int], Message] = {}
    calls: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for key, value in span.attributes.items():
        if not (match := _NUMBERED.fullmatch(key)):
            continue
        place, field = (match[1], int(match[2])), match[3]
        if call := _CALL.fullmatch(field):
            calls.setdefault(place, {}).setdefault(int(call[1]), {})[call[2]] = value
        elif field in ("role", "content", "tool_call_id"):
            parts.setdefault(place, {})[field] = value
    for place, found in calls.items():
        made = [_tool_call(found[number]) for number in sorted(found)]
        parts.setdefault(place, {})["tool_calls"] = made
    prompt = [parts[place] for place in sorted(parts) if place[0] == "prompt"]
    answers = [parts[place] for place in sorted(parts) if place[0] == "completion"]
    return prompt, [{"role": "assistant", "content": None, **answers[0]}] if answers else []
