"""Prices by litellm: cases as JSON on standard input, answers on standard output.

`prices.py` runs this file with the interpreter of litellm's environment. A payload is read by
litellm's own transformation of that provider's responses, as `litellm.completion` does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
from typing import Any


def usage_of(provider: str, said: dict[str, Any]) -> Any:
    """Return litellm's usage of an Anthropic or Gemini payload."""
    if provider == "anthropic":
        from litellm.llms.anthropic.chat.transformation import AnthropicConfig

        return AnthropicConfig().calculate_usage(usage_object=said["usage"], reasoning_content=None)
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import VertexGeminiConfig

    return VertexGeminiConfig._calculate_usage(said)  # noqa: SLF001


def whole(case: dict[str, Any]) -> Any:
    """Return a payload as litellm's response."""
    import litellm
    from litellm.types.llms.openai import ResponsesAPIResponse

    said = case["response"]
    if said.get("object") == "response":
        return ResponsesAPIResponse(**{"id": "r", "created_at": 0, "output": []} | said)
    if case["provider"] == "openai":
        return litellm.ModelResponse(**said)
    return litellm.ModelResponse(model=case["model"], usage=usage_of(case["provider"], said))


def streamed(case: dict[str, Any]) -> Any:
    """Return a stream's chunks as litellm's response, built as it builds them."""
    import litellm

    chunks = case["chunks"]
    if case["provider"] == "anthropic":
        from litellm.llms.anthropic.chat.handler import ModelResponseIterator

        parser = ModelResponseIterator(streaming_response=iter(()), sync_stream=True)
        return litellm.stream_chunk_builder([parser.chunk_parser(chunk) for chunk in chunks])
    if "response" in chunks[-1]:
        return whole(case | {"response": chunks[-1]["response"]})
    made = [litellm.ModelResponseStream(**chunk) for chunk in chunks]
    return litellm.stream_chunk_builder(made)


def dollars(case: dict[str, Any]) -> float | str:
    """Return US dollars, or the name of what litellm raises."""
    import litellm

    provider = {"google": "gemini"}.get(case["provider"], case["provider"])
    try:
        response = streamed(case) if "chunks" in case else whole(case)
        return litellm.completion_cost(
            completion_response=response, model=case["model"], custom_llm_provider=provider
        )
    except Exception as error:
        return type(error).__name__


def main() -> None:
    """Answer all cases."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    cases = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answers = [dollars(case) for case in cases]
    print(json.dumps([importlib.metadata.version("litellm"), answers]))


if __name__ == "__main__":
    main()
