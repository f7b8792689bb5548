"""Incremental text of token ids: without broken characters, special tokens, and text after a stop
string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from art_core.endpoint.engine import ChatTokenizer
from art_core.endpoint.strict_json import without_surrogates
from art_core.endpoint.thoughts import TAGS
from art_core.endpoint.tools import MARKER_TOKENS

REPLACEMENT = "\ufffd"
_BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")
MAX_HELD_TOKENS = 16
"""Bytes that are not a character after so many tokens will never be one."""


class Detokenizer:
    """Returns the text of one choice token by token.

    Special tokens are left out, except those of thoughts and, with `tools`, of tool calls: they are
    parsed later. A character is held back until all its bytes have come.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, tools: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._visible = {*TAGS, *TAGS.values(), *(MARKER_TOKENS if tools else ())}
        self._ids: list[int] = []
        self._start = self._end = 0
        self._before = ""

    def add(self, token_id: int) -> str:
        """Return the text that this token completes."""
        if token_id in self._special and self._decode([token_id]).strip() not in self._visible:
            return ""
        self._ids.append(token_id)
        return self._advance(final=len(self._ids) - self._end >= MAX_HELD_TOKENS)

    def flush(self) -> str:
        """Return the rest of the text after the last token; incomplete characters become U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        # Decode from the last boundary: tokenizers add spaces depending on the token before.
        now = self._decode(self._ids[self._start :])
        if not final and (len(now) <= len(self._before) or now.endswith(REPLACEMENT)):
            return ""
        new = now[len(self._before) :]
        self._start, self._end = self._end, len(self._ids)
        self._before = self._decode(self._ids[self._start : self._end])
        return new

    def _decode(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        return without_surrogates(self._tokenizer.decode(token_ids, skip_special_tokens=False))


@lru_cache(maxsize=64)
def _prefixes(endings: tuple[str, ...]) -> tuple[int, frozenset[str]]:
    """Return the length of the longest proper prefix of some strings, and all proper prefixes."""
    longest = max(map(len, endings), default=1) - 1
    return longest, frozenset(text[:size] for text in endings for size in range(1, len(text)))


def held_back(text: str, endings: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of one of the strings."""
    longest, prefixes = _prefixes(endings)
    for size in range(min(longest, len(text)), 0, -1):
        if text[-size:] in prefixes:
            return size
    return 0


class StopStrings:
    """Cuts text before the first stop string. Text that may begin a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def add(self, text: str) -> str:
        """Return the text that can be sent now; `found` is the stop string that ends it."""
        self._waiting += text
        places = [(self._waiting.find(stop), stop) for stop in self._stops]
        first = min((place for place in places if place[0] >= 0), default=None)
        if first is not None:
            self.found = first[1]
            return self._release(first[0])
        return self._release(len(self._waiting) - held_back(self._waiting, self._stops))

    def flush(self) -> str:
        """Return the text that was held back, after the last text."""
        return "" if self.stopped else self._release(len(self._waiting))

    def _release(self, length: int) -> str:
        ready, self._waiting = self._waiting[:length], self._waiting[length:]
        return ready


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """Return the characters for bytes in byte-level BPE vocabularies (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def token_text(tokenizer: ChatTokenizer, token_id: int) -> tuple[str, list[int]]:
    """Return a token's text and its bytes. The text of an incomplete character is U+FFFD."""
    text = without_surrogates(tokenizer.decode([token_id], skip_special_tokens=False))
    if REPLACEMENT not in text:
        return text, list(text.encode())
    spell = getattr(tokenizer, "convert_ids_to_tokens", None)
    spelled = spell(token_id) if spell else ""
    fallback = _BYTE_FALLBACK.fullmatch(spelled)
    if fallback:
        return text, [int(fallback.group(1), 16)]
    letters = _byte_letters()
    if spelled and all(letter in letters for letter in spelled):
        return text, [letters[letter] for letter in spelled]
    return text, list(text.encode())
