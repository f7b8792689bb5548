"""Choices of litellm as choices of openai."""

from __future__ import annotations

from typing import Any

from openai.types.chat.chat_completion import Choice


def convert_litellm_choice_to_openai(litellm_choice: Any) -> Choice:
    """Return a choice of a litellm answer, not of a stream, as openai's `Choice`."""
    dumped = litellm_choice.model_dump(mode="json", exclude_none=True)
    for holder in (dumped, dumped.get("message", {})):
        holder.update(holder.pop("provider_specific_fields", None) or {})
    dumped.setdefault("logprobs", None)
    return Choice.model_validate(dumped)
