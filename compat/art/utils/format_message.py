"""A message as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_message(message: Mapping[str, Any]) -> str:
    """Return the role of a message, its content, and a line for each of its tool calls."""
    content = message.get("content", message.get("refusal")) or ""
    called = [call["function"] for call in message.get("tool_calls") or () if "function" in call]
    calls = "\n".join(f"{each['name']}({each['arguments']})" for each in called)
    between = "\n" if content else ""
    return f"{message['role'].capitalize()}:\n{content}{between}{calls}"
