"""Results of batch APIs: the response inside a line of a batch's output."""

from __future__ import annotations

from typing import Any

from art_core.metrics.usage import field

BATCH = "batch"
_FAILED = ("errored", "canceled", "expired")


def is_line(response: Any) -> bool:
    """Return whether this is a line of a batch's output (OpenAI, Mistral, Anthropic, Gemini)."""
    return isinstance(field(response, "custom_id"), str) or (
        isinstance(field(response, "key"), str) and field(response, "response") is not None
    )


def result_of(line: Any) -> Any:
    """Return the response in a batch's line; None for a request that failed and costs nothing."""
    status = field(line, "response", "status_code")
    if field(line, "error") or field(line, "result", "type") in _FAILED:
        return None
    if isinstance(status, int) and status >= 400:
        return None
    body = field(line, "response", "body") or field(line, "result", "message")
    return field(line, "response") if body is None else body
