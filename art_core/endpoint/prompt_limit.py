"""Refuse prompts that cannot fit into a context before they are tokenised, by their length as text.

Tokenising some megabytes takes seconds. A token covers at most as many characters as the longest
one of the vocabulary, so a longer text cannot fit.
"""

from __future__ import annotations

from art_core.endpoint.engine import ChatTokenizer, ServedModel
from art_core.endpoint.errors import RequestError

USUAL_LONGEST = 64
"""Characters of the longest token, where a tokenizer has no `get_vocab`; a lower bound elsewhere,
since normalizing may shorten a text."""


class PromptLimit:
    """Knows the longest token of each tokenizer."""

    def __init__(self) -> None:
        self._longest: dict[int, int] = {}

    def check(self, text: object, messages: int, served: ServedModel) -> None:
        """Raise RequestError for a rendered prompt, of so many messages, that cannot fit."""
        context = served.engine.context_length
        length = len(text) if isinstance(text, str) else 0
        if messages <= context and length <= context * self._longest_token(served.tokenizer):
            return
        raise too_long(f"{messages} messages and {length} characters", served)

    def _longest_token(self, tokenizer: ChatTokenizer) -> int:
        if id(tokenizer) not in self._longest:
            vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
            longest = max(map(len, vocabulary), default=0)
            self._longest[id(tokenizer)] = max(longest, USUAL_LONGEST)
        return self._longest[id(tokenizer)]


def too_long(size: str, served: ServedModel) -> RequestError:
    """Return the error that a prompt of some size leaves no room for an answer."""
    return RequestError(
        400,
        f"the prompt has {size}; the context of {served.name!r} holds "
        f"{served.engine.context_length} tokens, at least one of them for the answer. Shorten the "
        "messages",
        "messages",
        "context_length_exceeded",
    )
