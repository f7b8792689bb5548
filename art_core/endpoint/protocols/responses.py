"""OpenAI's Responses, as chat completions: the request, the response, and its events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError, bad_parameter, shown, unsupported
from art_core.endpoint.protocols.form import (
    EXTENSIONS,
    Asked,
    Chunks,
    Protocol,
    Received,
    event,
    grown,
    new_id,
    of_the_sample,
    thoughts_of,
    usage_of,
)
from art_core.endpoint.protocols.items import conversation
from art_core.endpoint.protocols.stored import StoredResponse, StoredResponses
from art_core.endpoint.request import Known, check_names
from art_core.endpoint.strict_json import MAX_DEPTH, too_deep

KNOWN = Known(
    parameters=EXTENSIONS
    | {
        "include", "input", "instructions", "max_output_tokens", "metadata", "model",
        "parallel_tool_calls", "previous_response_id", "reasoning", "stop", "store", "stream",
        "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p",
    },
    without_effect=frozenset(
        {
            "client_metadata", "max_tool_calls", "prompt_cache_key", "prompt_cache_options",
            "prompt_cache_retention", "safety_identifier", "service_tier", "user",
        }
    ),
    neutral={
        "background": ((False,), "an answer is sampled while its request waits"),
        "context_management": (([],), "the agent shortens its conversation itself"),
        "conversation": ((), "use previous_response_id, or send the items again"),
        "moderation": ((), "moderation is not available here"),
        "n": ((1,), "a response has one answer"),
        "prompt": ((), "there are no stored prompts here; send instructions and input"),
        "truncation": (("disabled",), "the agent shortens its conversation itself"),
    },
)  # fmt: skip
"""The parameters of a response."""

_SAME = ("model", "parallel_tool_calls", "temperature", "top_p", "stop", *sorted(EXTENSIONS))
_LOGPROBS = "message.output_text.logprobs"
_INCLUDE = (_LOGPROBS, "reasoning.encrypted_content")
_ECHOED: dict[str, Any] = {
    "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True,
    "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": True,
    "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
    "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": None,
}  # fmt: skip


def parse(body: Mapping[str, Any], stored: StoredResponses) -> Asked:
    """Return the chat completion that a body asks for; RequestError if it is invalid."""
    given = {name: value for name, value in body.items() if value is not None}
    check_names(given, KNOWN)
    for name in _ECHOED.keys() & given.keys():
        if too_deep(given[name]):
            raise bad_parameter(name, f"a value of at most {MAX_DEPTH} levels", given[name])
    messages = [*_before(given, stored), *conversation(given.get("input"), stored)]
    instructions = given.get("instructions", "")
    if not isinstance(instructions, str):
        raise bad_parameter("instructions", "a text", instructions)
    system = [{"role": "system", "content": instructions}] if instructions else []
    chat: dict[str, Any] = {"messages": [*system, *messages]}
    chat |= {name: given[name] for name in _SAME if name in given}
    chat |= _options(given)
    if given.get("stream"):
        chat |= {"stream": given["stream"], "stream_options": {"include_usage": True}}
    store = given.get("store", True)
    if not isinstance(store, bool):
        raise bad_parameter("store", "true or false", store)

    def keep(response: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        if store:
            stored.add(StoredResponse(response, (*messages, message)))

    return Asked(body=given, chat=chat, keep=keep)


def _before(given: Mapping[str, Any], stored: StoredResponses) -> tuple[Mapping[str, Any], ...]:
    previous = given.get("previous_response_id")
    if previous is None:
        return ()
    if not isinstance(previous, str):
        raise bad_parameter("previous_response_id", "a response's id", previous)
    return stored.get(previous, previous=True).messages


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that have another form in a chat completion."""
    chat: dict[str, Any] = {}
    if "max_output_tokens" in given:
        chat["max_completion_tokens"] = given["max_output_tokens"]
    if "tools" in given:
        chat["tools"] = _tools(given["tools"])
    if "tool_choice" in given:
        chat["tool_choice"] = _tool_choice(given["tool_choice"])
    effort = _object(given, "reasoning").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    include = given.get("include", [])
    for name in include if isinstance(include, list) else [include]:
        if name not in _INCLUDE:
            raise unsupported("include", f"one of {', '.join(_INCLUDE)} is; got {shown(name)}")
    if given.get("top_logprobs") or _LOGPROBS in include:
        chat |= {"logprobs": True, "top_logprobs": given.get("top_logprobs", 0)}
    return chat | _text(given)


def _text(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for the form of the text."""
    text, chat = _object(given, "text"), {}
    form = text.get("format") or {"type": "text"}
    if not isinstance(form, Mapping):
        raise bad_parameter("text.format", "an object", form)
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.get("type") != "text":
        chat["response_format"] = dict(form)
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    return chat


def _object(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, Mapping):
        raise bad_parameter(name, "an object", value)
    return value


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise bad_parameter("tools", "a list", tools)
    return [_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools)]


def _tool(where: str, tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if not isinstance(kind, str):
        raise bad_parameter(where, 'of the form {"type": "function", "name": ...}', tool)
    if kind != "function":
        raise unsupported(
            f"{where}.type", f"there are no hosted tools here; offer a function (got {shown(kind)})"
        )
    fields = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in fields if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind != "function":
        raise unsupported(
            "tool_choice", f"a function, 'auto', 'none' or 'required' is; got {shown(choice)}"
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


def render(asked: Asked, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response to a chat completion, and keep it for the next request."""
    writer = _Writer(asked)
    writer.begin(completion)
    choice = completion["choices"][0]
    message = choice["message"]
    writer.grow(thoughts_of(message), message.get("content") or "", choice)
    writer.end(completion)
    return writer.response


async def events(asked: Asked, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed response; an error of the stream is its last event."""
    writer, received = _Writer(asked), Received()
    try:
        async for chunk in chunks:
            received.add(chunk)
            if not writer.response:
                writer.begin(chunk)
            writer.grow(*grown(chunk))
            for each in writer.taken():
                yield each
        writer.end(received.whole())
    except RequestError as error:
        writer.fail(RESPONSES.own(error))
    for each in writer.taken():
        yield each


@attrs.define
class _Writer:
    """Makes a response item by item, and the events of a stream."""

    asked: Asked
    response: dict[str, Any] = attrs.field(factory=dict)
    _item: dict[str, Any] | None = None
    _sent: int = 0
    _events: list[bytes] = attrs.field(factory=list)

    def taken(self) -> list[bytes]:
        """Return the events since the last call."""
        taken, self._events = self._events, []
        return taken

    def begin(self, head: Mapping[str, Any]) -> None:
        """Begin the response; `head` is a chat completion or its first chunk."""
        body = self.asked.body
        self.response = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": head.get("created") or int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": head.get("model") or body.get("model"),
            "output": [],
            "usage": None,
            **{name: body.get(name, value) for name, value in _ECHOED.items()},
        }
        self._emit("response.created", response=self.response)
        self._emit("response.in_progress", response=self.response)

    def grow(self, thoughts: str | None, text: str, choice: Mapping[str, Any]) -> None:
        """Add thoughts, and text with its log-probs if they were asked for."""
        if thoughts is not None:
            self._open("reasoning")
            self._add(thoughts)
        if not text:
            return
        self._open("message")
        asked = self.asked.chat.get("logprobs")
        entries = ((choice.get("logprobs") or {}).get("content") or []) if asked else []
        self._add(text, logprobs=entries)

    def end(self, completion: Mapping[str, Any]) -> None:
        """Add the calls, end the response and keep it."""
        choice = completion["choices"][0]
        cut = choice.get("finish_reason") == "length"
        calls = choice["message"].get("tool_calls") or ()
        self._close("incomplete" if cut and not calls else "completed")
        for call in calls:
            self._call(call)
        prompt, cached, sampled = usage_of(completion)
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": sampled,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + sampled,
            },
            **of_the_sample(self.asked, completion),
        }
        self.asked.keep(self.response, choice["message"])
        self._emit("response.incomplete" if cut else "response.completed", response=self.response)

    def fail(self, error: RequestError) -> None:
        """End with an error. OpenAI's clients raise it because of the field `error`."""
        own = error.body()["error"]
        about = {name: own[name] for name in ("code", "message", "param")}
        self._emit("error", **about, error=own)

    def _open(self, kind: str) -> None:
        """Begin an item of a kind, "reasoning" or "message", unless it is open."""
        if self._item is not None and self._item["type"] == kind:
            return
        self._close()
        item: dict[str, Any] = {"id": new_id(_PREFIX[kind]), "type": kind, "status": "in_progress"}
        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        self._begin_item({**item, **own, "content": []})
        part: dict[str, Any] = {"type": _PARTS[kind], "text": ""}
        part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
        self._emit_part("response.content_part.added", part=part)
        self._open_item["content"].append(part)

    def _add(self, text: str, **logprobs: list[Any]) -> None:
        part = self._open_item["content"][0]
        part["text"] += text
        for name, entries in logprobs.items():
            part[name] += entries
        if text:
            self._emit_part(f"{_NAMES[part['type']]}.delta", delta=text, **logprobs)

    def _close(self, status: str = "completed") -> None:
        if self._item is None:
            return
        part = self._item["content"][0]
        logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        self._emit_part(f"{_NAMES[part['type']]}.done", text=part["text"], **logprobs)
        self._emit_part("response.content_part.done", part=part)
        self._end_item(status=status)

    def _call(self, call: Mapping[str, Any]) -> None:
        function = call["function"]
        arguments = function.get("arguments") or ""
        item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress"}
        about = {"call_id": call.get("id"), "name": function["name"], "arguments": ""}
        self._begin_item(item | about)
        kind, own = "response.function_call_arguments", {"item_id": item["id"]}
        self._emit_item(f"{kind}.delta", **own, delta=arguments)
        self._emit_item(f"{kind}.done", **own, name=function["name"], arguments=arguments)
        self._end_item(arguments=arguments, status="completed")

    @property
    def _open_item(self) -> dict[str, Any]:
        assert self._item is not None
        return self._item

    def _begin_item(self, item: dict[str, Any]) -> None:
        self._item = item
        self.response["output"].append(item)
        self._emit_item("response.output_item.added", item=item)

    def _end_item(self, **fields: Any) -> None:
        self._open_item.update(fields)
        self._emit_item("response.output_item.done", item=self._open_item)
        self._item = None

    def _emit_part(self, kind: str, **fields: Any) -> None:
        self._emit_item(kind, item_id=self._open_item["id"], content_index=0, **fields)

    def _emit_item(self, kind: str, **fields: Any) -> None:
        self._emit(kind, output_index=len(self.response["output"]) - 1, **fields)

    def _emit(self, kind: str, **fields: Any) -> None:
        if self.asked.stream:
            self._events.append(event({"type": kind, "sequence_number": self._sent, **fields}))
            self._sent += 1


_PREFIX = {"reasoning": "rs", "message": "msg"}
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}
_NAMES = {"reasoning_text": "response.reasoning_text", "output_text": "response.output_text"}

RESPONSES = Protocol(
    parse=parse,
    render=render,
    events=events,
    error=RequestError.body,
    names={
        "max_completion_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning",
        "response_format": "text",
        "verbosity": "text",
    },
)
