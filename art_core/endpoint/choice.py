"""One choice as it grows: tokens in, deltas out, and the whole at the end."""

from __future__ import annotations

from typing import Any

import attrs

from art_core.endpoint.answer import Answer
from art_core.endpoint.chat import Prepared
from art_core.endpoint.engine import ChatTokenizer, Token
from art_core.endpoint.growing import NOTHING, GrowingAnswer, Shown
from art_core.endpoint.request import finite
from art_core.endpoint.text import Detokenizer, StopStrings, token_text


@attrs.frozen(kw_only=True)
class Delta:
    """What one step adds to a choice: text to show, tokens and, in the last, the whole answer and
    why it ended.
    """

    shown: Shown = NOTHING
    tokens: tuple[Token, ...] = ()
    answer: Answer | None = None
    finish_reason: str | None = None


class GrowingChoice:
    """Turns engine tokens into deltas of text, holding back what may be a stop string, a tag or a
    tool call.
    """

    def __init__(self, prepared: Prepared) -> None:
        request = prepared.request
        offered = [tool["function"] for tool in request.tools]
        functions = {each["name"]: each.get("parameters") for each in offered}
        self._answer = GrowingAnswer(functions, prepared.closing)
        self._detokenizer = Detokenizer(prepared.served.tokenizer, tools=bool(functions))
        self._stops = StopStrings(request.stop)

    def add(self, token: Token) -> Delta:
        """Take a token; after the delta that has the answer no more may come."""
        shown = self._answer.add(self._stops.add(self._detokenizer.add(token.id)))
        if token.finish is None and not self._stops.stopped:
            return Delta(shown=shown, tokens=(token,))
        return self._end(token, shown)

    def _end(self, token: Token, shown: Shown) -> Delta:
        if not self._stops.stopped:
            left = self._stops.add(self._detokenizer.flush())
            shown = shown.then(self._answer.add(left + self._stops.flush()))
        rest, answer = self._answer.end()
        finish = "stop" if self._stops.stopped else str(token.finish)
        if answer.calls and finish == "stop":
            finish = "tool_calls"
        return Delta(shown=shown.then(rest), tokens=(token,), answer=answer, finish_reason=finish)


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
