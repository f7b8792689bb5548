"""One choice as it grows: tokens in, deltas out, and the whole at the end."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.endpoint.engine import ChatTokenizer, Token
from art_core.endpoint.request import ChatRequest, finite
from art_core.endpoint.text import Detokenizer, StopStrings, token_text
from art_core.endpoint.tools import ToolCall, may_begin_call, parse


@attrs.frozen(kw_only=True)
class Delta:
    """What one step adds to a choice: text to show, tokens, tool calls and, in the last, why it
    ended.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None


class GrowingChoice:
    """Turns engine tokens into deltas of text, holding back what may be a stop string or a tool
    call.
    """

    def __init__(self, request: ChatRequest, tokenizer: ChatTokenizer) -> None:
        offered = [tool["function"] for tool in request.tools]
        self._functions = {each["name"]: each.get("parameters") for each in offered}
        self._detokenizer = Detokenizer(tokenizer, keep_markers=bool(self._functions))
        self._stops = StopStrings(request.stop)
        self._text = ""
        self._shown = 0
        self.ended = False

    def add(self, token: Token) -> Delta:
        """Take a token; once `ended`, no more may come."""
        self._text += self._stops.add(self._detokenizer.add(token.id))
        if token.finish is None and not self._stops.stopped:
            sure = may_begin_call(self._text) if self._functions else len(self._text)
            return Delta(text=self._show(max(sure, self._shown)), tokens=(token,))
        return self._end(token)

    def _end(self, token: Token) -> Delta:
        self.ended = True
        if not self._stops.stopped:
            self._text += self._stops.add(self._detokenizer.flush())
            self._text += self._stops.flush()
        finish = "stop" if self._stops.stopped else str(token.finish)
        calls: list[ToolCall] = []
        if self._functions:
            content, calls = parse(self._text, self._functions)
        if calls:
            rest = content[self._shown :] if len(content) > self._shown else ""
            finish = "tool_calls" if finish == "stop" else finish
            return Delta(text=rest, tokens=(token,), tool_calls=tuple(calls), finish_reason=finish)
        return Delta(text=self._show(len(self._text)), tokens=(token,), finish_reason=finish)

    def _show(self, length: int) -> str:
        text = self._text[self._shown : length]
        self._shown = length
        return text


def logprob_entries(tokens: tuple[Token, ...], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """OpenAI's logprobs.content: one entry a token id, the end token included."""
    entries = []
    for token in tokens:
        top = [_entry(tokenizer, token_id, logprob) for token_id, logprob in token.top]
        entries.append({**_entry(tokenizer, token.id, token.logprob), "top_logprobs": top})
    return entries


def _entry(tokenizer: ChatTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    text, text_bytes = token_text(tokenizer, token_id)
    return {"token": text, "logprob": finite(logprob), "bytes": text_bytes}
