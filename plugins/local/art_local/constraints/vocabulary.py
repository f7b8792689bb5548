"""The tokens that a grammar allows, for the engine that samples and for training."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from art_core.base.errors import ConfigError, EngineError

KEPT = 64
"""Compiled grammars that are kept."""
MAX_REASON = 500


class Vocabulary:
    """A tokenizer's vocabulary, as llguidance reads it, at first use. `size` is that of the model's
    logits. Safe under threads.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self._lock = threading.Lock()
        self._tokens: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    @property
    def mask_bytes(self) -> int:
        """The bytes of a mask: one bit for each token, the first one in the lowest bit."""
        return (self.size + 7) // 8

    def specials(self) -> dict[str, int]:
        """Return the tokens that text never becomes, with their ids: grammars name them by id."""
        with self._lock:
            tokens = self._known_tokens()
        added = self.tokenizer.added_tokens_decoder
        return {t.content: place for place, t in added.items() if tokens.is_special_token(place)}

    def matcher(self, grammar: str) -> Matcher:
        """Return a matcher of a new answer; ConfigError for a grammar that does not compile."""
        with self._lock:
            compiled = self._compiled.get(grammar) or self._compile(grammar)
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Matcher(compiled.deep_copy(), self.mask_bytes)

    def masks(self, grammar: str, ids: Sequence[int]) -> Iterator[bytes]:
        """Yield the mask before each token of an answer that was sampled under a grammar.

        Raises ConfigError for a token that the grammar does not allow.
        """
        matcher = self.matcher(grammar)
        for place, token in enumerate(ids):
            mask = matcher.mask()
            if not mask[token >> 3] >> (token & 7) & 1:
                raise ConfigError(
                    f"token {place} of an answer, {token}, is not allowed by the answer's grammar",
                    "Train answers on the base model, and with the version of llguidance, that "
                    "they were sampled with.",
                )
            yield mask
            matcher.take(token)

    def complaint(self, grammar: str) -> str | None:
        """Return why a grammar does not compile, if it does not."""
        import llguidance

        with self._lock:
            wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
                grammar, self._known_tokens()
            )
        return _reason(messages[0]) if wrong else None

    def _known_tokens(self) -> Any:
        if self._tokens is None:
            import llguidance.hf

            if self.tokenizer.eos_token_id is None:
                raise ConfigError("the model's tokenizer has no end token, so no form can end")
            try:
                self._tokens = llguidance.hf.from_tokenizer(
                    self.tokenizer, max(self.size, len(self.tokenizer))
                )
            except ValueError as error:
                raise ConfigError(
                    f"llguidance cannot read the model's tokenizer: {error}"
                ) from error
        return self._tokens

    def _compile(self, grammar: str) -> Any:
        import llguidance

        compiled = llguidance.LLMatcher(self._known_tokens(), grammar, log_level=0)
        compiled.compute_bitmask()  # the first mask shows what is too large
        if compiled.is_error():
            raise ConfigError(_reason(compiled.get_error()))
        compiled.reset()
        return compiled


class Matcher:
    """One answer under a grammar: which tokens may come next."""

    def __init__(self, matcher: Any, mask_bytes: int) -> None:
        self._matcher, self._bytes = matcher, mask_bytes

    def mask(self) -> bytes:
        """Return the allowed tokens, a bit for each; the end token only if the answer is complete.

        Raises EngineError if the grammar has become too complex to follow.
        """
        found: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise EngineError(f"the grammar of an answer cannot be followed: {reason}")
        return found[: self._bytes]

    def take(self, token: int) -> None:
        """Add a sampled token to the answer."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _reason(message: str) -> str:
    """Return llguidance's message without the grammar, which it quotes, and the parser's state."""
    message = message.partition("\n<state>")[0]
    shown = [line.strip() for line in message.splitlines() if not _QUOTED.match(line)]
    reason = _PLACE.sub("", " ".join(filter(None, shown)))
    return reason if len(reason) <= MAX_REASON else f"{reason[:200]} … {reason[-300:]}"


_QUOTED = re.compile(r"\s*(\d+ \||\^$)")
"""A line of the grammar, or the mark below it."""
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")
