"""Anthropic's Messages, as chat completions: the request, the message, and its events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError, bad_parameter, unsupported
from art_core.endpoint.protocols.blocks import checked_list, conversation, text_of
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
from art_core.endpoint.protocols.stored import StoredResponses
from art_core.endpoint.request import Known, check_names
from art_core.endpoint.strict_json import whole_json

_KEEP_THOUGHTS = {"type": "clear_thinking_20251015", "keep": "all"}
KNOWN = Known(
    parameters=EXTENSIONS
    | {
        "max_tokens", "messages", "model", "output_config", "output_format", "stop_sequences",
        "stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p",
    },
    without_effect=frozenset(
        {"betas", "cache_control", "inference_geo", "metadata", "service_tier"}
    ),
    neutral={
        "container": ((), "there are no hosted tools here"),
        "context_management": (
            ({}, {"edits": []}, {"edits": [_KEEP_THOUGHTS]}),
            "the agent shortens its conversation itself",
        ),
        "mcp_servers": (([],), "there are no hosted tools here; offer a tool of your own"),
    },
)  # fmt: skip
"""The parameters of a message."""

_SAME = ("model", "temperature", "top_k", "top_p", *sorted(EXTENSIONS))
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_EFFORT = "high"
"""The effort of a message that names none."""
SIGNATURE = "unsigned"
"""The signature of thoughts: some clients send thoughts back only if they have one."""
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


def parse(body: Mapping[str, Any], stored: StoredResponses) -> Asked:  # noqa: ARG001
    """Return the chat completion that a body asks for; RequestError if it is invalid."""
    given = {name: value for name, value in body.items() if value is not None}
    check_names(given, KNOWN)
    if "max_tokens" not in given:
        raise bad_parameter("max_tokens", "given: a whole number of at least 1", None)
    chat = prompt(given)
    chat |= {name: given[name] for name in _SAME if name in given}
    chat["max_completion_tokens"] = given["max_tokens"]
    if "stop_sequences" in given:
        chat["stop"] = checked_list("stop_sequences", given["stop_sequences"])
    chat |= _form(given) | _thinking(given, chat.get("chat_template_kwargs", {}))
    if given.get("stream"):
        chat |= {"stream": given["stream"], "stream_options": {"include_usage": True}}
    return Asked(body=given, chat=chat)


def prompt(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat completion's messages and tools."""
    system = text_of("system", given.get("system", ""))
    first = [{"role": "system", "content": system}] if system else []
    chat: dict[str, Any] = {"messages": [*first, *conversation(given.get("messages"))]}
    tools = checked_list("tools", given.get("tools", []))
    if tools:
        chat["tools"] = [_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools)]
    return chat | _tool_choice(given.get("tool_choice"))


def _tool(where: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
        raise bad_parameter(where, 'of the form {"name": ..., "input_schema": {...}}', tool)
    kind = tool.get("type")
    if kind not in (None, "custom"):
        reason = f"there are no hosted tools here; offer a tool with input_schema (got {kind!r})"
        raise unsupported(f"{where}.type", reason)
    function = {"name": tool["name"], "parameters": tool.get("input_schema")}
    more = {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function | more}


def _tool_choice(choice: Any) -> dict[str, Any]:
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind not in (*_CHOICES, "tool"):
        raise bad_parameter("tool_choice.type", "one of auto, any, tool, none", kind)
    chat: dict[str, Any] = {"tool_choice": _CHOICES.get(kind)}
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _form(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters for the form of the answer."""
    config = given.get("output_config", {})
    if not isinstance(config, Mapping):
        raise bad_parameter("output_config", "an object", config)
    form = given.get("output_format", config.get("format"))
    effort = config.get("effort")
    chat = {} if effort in (None, _EFFORT) else {"reasoning_effort": effort}
    if form is None:
        return chat
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        expected = 'of the form {"type": "json_schema", "schema": {...}}'
        raise bad_parameter("output_format", expected, form)
    schema = {"name": "answer", "schema": form.get("schema"), "strict": True}
    return {**chat, "response_format": {"type": "json_schema", "json_schema": schema}}


def _thinking(given: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """Return the variable that switches thoughts on and off in chat templates."""
    thinking = given.get("thinking")
    if thinking is None:
        return {}
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "adaptive", "disabled"):
        raise bad_parameter("thinking.type", "one of enabled, adaptive, disabled", kind)
    if not isinstance(options, Mapping):
        raise bad_parameter("chat_template_kwargs", "an object", options)
    return {"chat_template_kwargs": {"enable_thinking": kind != "disabled", **options}}


def render(asked: Asked, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message of a chat completion."""
    writer = _Writer(asked)
    writer.begin(completion)
    message = completion["choices"][0]["message"]
    writer.grow(thoughts_of(message), message.get("content") or "")
    writer.end(completion)
    return writer.message


async def events(asked: Asked, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed message; an error of the stream is its last event."""
    writer, received = _Writer(asked), Received()
    try:
        async for chunk in chunks:
            received.add(chunk)
            if not writer.message:
                writer.begin(chunk)
            thoughts, text, _ = grown(chunk)
            writer.grow(thoughts, text)
            for each in writer.taken():
                yield each
        writer.end(received.whole())
    except RequestError as error:
        writer.fail(MESSAGES.own(error))
    for each in writer.taken():
        yield each


@attrs.define
class _Writer:
    """Makes a message block by block, and the events of a stream."""

    asked: Asked
    message: dict[str, Any] = attrs.field(factory=dict)
    _open: str = ""
    _events: list[bytes] = attrs.field(factory=list)

    def taken(self) -> list[bytes]:
        """Return the events since the last call."""
        taken, self._events = self._events, []
        return taken

    def begin(self, head: Mapping[str, Any]) -> None:
        """Begin the message; `head` is a chat completion or its first chunk."""
        prompt = head.get("prompt_tokens") or len(head.get("prompt_token_ids") or ())
        self.message = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": head.get("model") or self.asked.body.get("model"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt, "output_tokens": 0},
        }
        self._emit("message_start", message=self.message)

    def grow(self, thoughts: str | None, text: str) -> None:
        """Add thoughts and text."""
        if thoughts is not None:
            self._begin({"type": "thinking", "thinking": "", "signature": ""})
            self._add("thinking", thoughts)
        if text:
            self._begin({"type": "text", "text": ""})
            self._add("text", text)

    def end(self, completion: Mapping[str, Any]) -> None:
        """Add the calls and end the message."""
        choice = completion["choices"][0]
        for call in choice["message"].get("tool_calls") or ():
            self._call(call)
        self._close()
        prompt, cached, sampled = usage_of(completion)
        usage = {"input_tokens": prompt - cached, "output_tokens": sampled}
        usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
        stop = choice.get("stop_reason")
        stop = stop if stop in self.asked.chat.get("stop", ()) else None
        reason = _REASONS.get(choice["finish_reason"], "stop_sequence" if stop else "end_turn")
        stopped = {"stop_reason": reason, "stop_sequence": stop}
        more = of_the_sample(self.asked, completion)
        self.message |= {**stopped, "usage": usage, **more}
        self._emit("message_delta", delta=stopped, usage=usage, **more)
        self._emit("message_stop")

    def fail(self, error: RequestError) -> None:
        """End with an error."""
        self._emit(**error_body(error))

    def _call(self, call: Mapping[str, Any]) -> None:
        function = call["function"]
        arguments = function.get("arguments") or "{}"
        about = {"id": call.get("id"), "name": function["name"]}
        self._begin({"type": "tool_use", **about, "input": {}})
        self._emit_delta("input_json_delta", partial_json=arguments)
        self.message["content"][-1]["input"] = whole_json(arguments) or {}
        self._close()

    def _begin(self, block: dict[str, Any]) -> None:
        """Begin a block, unless one of its kind is open."""
        if self._open == block["type"]:
            return
        self._close()
        self._open = block["type"]
        self.message["content"].append(block)
        self._emit("content_block_start", index=self._index, content_block=block)

    def _add(self, name: str, text: str) -> None:
        self.message["content"][-1][name] += text
        if text:
            self._emit_delta(f"{name}_delta", **{name: text})

    def _close(self) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            self.message["content"][-1]["signature"] = SIGNATURE
            self._emit_delta("signature_delta", signature=SIGNATURE)
        self._emit("content_block_stop", index=self._index)
        self._open = ""

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1

    def _emit_delta(self, kind: str, **fields: str) -> None:
        self._emit("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _emit(self, type: str, **fields: Any) -> None:
        if self.asked.stream:
            self._events.append(event({"type": type, **fields}))


def error_body(error: RequestError) -> dict[str, Any]:
    """Return an error in Anthropic's form."""
    default = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ERRORS.get(error.status, default)
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": None}


MESSAGES = Protocol(
    parse=parse,
    render=render,
    events=events,
    error=error_body,
    names={
        "max_completion_tokens": "max_tokens",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "output_config.effort",
        "response_format": "output_format",
        "stop": "stop_sequences",
    },
)
