"""A person in the terminal in the place of a model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TextIO

import attrs

from art_core.base.errors import ConfigError

_CALL = re.compile(r"/([\w-]+)\s*(.*)", re.DOTALL)


@attrs.define
class Person:
    """Answers in the place of a model: shows what is new in a conversation, and reads one line."""

    stdin: TextIO
    out: TextIO
    _seen: int = 0
    _tools: Sequence[Mapping[str, Any]] = ()

    def get_inference_name(self) -> str:
        """Return the name that requests have."""
        return "person"

    def openai_client(self) -> Any:
        """Return the part of a client that chats."""
        return SimpleNamespace(chat=SimpleNamespace(completions=self))

    async def create(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        **_: Any,
    ) -> Any:
        """Return a completion with the person's next answer."""
        if tools and not self._tools:
            self._tools = tools
            self._write(*_shown_tools(tools))
        message = await asyncio.to_thread(self.answer, messages)
        choice = {"finish_reason": "stop", "message": {"role": "assistant", **message}}
        return SimpleNamespace(choices=[choice])

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Show the messages that are new; return the message that the person types."""
        new = [m for m in messages[self._seen :] if m.get("role") != "assistant"]
        self._seen = len(messages)
        self._write(*shown_messages(new))
        self.out.write("> ")
        self.out.flush()
        line = self.stdin.readline()
        if not line:
            raise ConfigError("the input ended before the attempt was over")
        return _message(line.rstrip("\n"), len(messages))

    def _write(self, *lines: str) -> None:
        for line in lines:
            self.out.write(f"{line}\n")


def _message(text: str, number: int) -> dict[str, Any]:
    """Return a typed line as a message; `/name {...}` calls a tool, `//` begins a text with `/`."""
    found = _CALL.fullmatch(text)
    if found is None:
        return {"content": text.removeprefix("/") if text.startswith("//") else text}
    function = {"name": found[1], "arguments": found[2] or "{}"}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"content": None, "tool_calls": [call]}


def shown_messages(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield messages as lines: the role, the text and the tool calls."""
    for message in messages:
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content) if content else ""
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        parts = [text] if text else []
        parts += [f"/{call['name']} {call['arguments']}" for call in calls]
        yield f"[{message.get('role')}] " + "\n".join(parts)


def _shown_tools(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "tools, called by /NAME {JSON}:"
    for tool in tools:
        function = tool["function"]
        names = ", ".join(function.get("parameters", {}).get("properties", {}))
        first = next(iter(str(function.get("description") or "").splitlines()), "")
        yield f"  /{function['name']}({names}) {first}".rstrip()
