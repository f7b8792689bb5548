"""A tool that adds, as each protocol declares it, and the model's calls of it."""

from __future__ import annotations

import json
from typing import Any

ABOUT = "Add two numbers."
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
CHAT_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": ABOUT, "parameters": PARAMETERS},
}
RESPONSES_TOOL: dict[str, Any] = {
    "type": "function", "name": "add", "description": ABOUT, "parameters": PARAMETERS,
    "strict": False,
}  # fmt: skip
MESSAGES_TOOL: dict[str, Any] = {
    "name": "add", "description": ABOUT, "input_schema": PARAMETERS,
}  # fmt: skip
ANSWER = '{"a": 1, "b": 2}'


def add(arguments: str | dict[str, int]) -> str:
    """Return the sum of a call's arguments."""
    values = json.loads(arguments) if isinstance(arguments, str) else arguments
    return str(values["a"] + values["b"])


def call(a: int = 1, b: int = 2) -> str:
    """Return a call as the model writes it."""
    return f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'
