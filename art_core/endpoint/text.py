"""Token ids become text as they come: no broken characters, no special tokens, nothing past a stop
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
"""Bytes that are no character after so many tokens never will be one."""


class Detokenizer:
    """Grows the visible text of one choice, token by token.

    Special tokens are hidden, but for those of thoughts and, with `tools`, of tool calls, which are
    read later. Characters whose bytes have not all come are held until they have.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, tools: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._kept = {*TAGS, *TAGS.values(), *(MARKER_TOKENS if tools else ())}
        self._ids: list[int] = []
        self._start = self._end = 0
        self._before = ""

    def add(self, token_id: int) -> str:
        """Return the text that this token completes."""
        if token_id in self._special and self._decode([token_id]).strip() not in self._kept:
            return ""
        self._ids.append(token_id)
        return self._advance(final=len(self._ids) - self._end >= MAX_HELD_TOKENS)

    def flush(self) -> str:
        """Return what is left when no more tokens come; unfinished characters become U+FFFD."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        # From the last boundary, not from the token: tokenizers place spaces by the token before.
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
def _beginnings(endings: tuple[str, ...]) -> tuple[int, frozenset[str]]:
    """Return the length of the longest true beginning of some strings, and all beginnings."""
    longest = max(map(len, endings), default=1) - 1
    return longest, frozenset(text[:size] for text in endings for size in range(1, len(text)))


def held_back(text: str, endings: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` that could be the beginning of one of the
    strings.
    """
    longest, beginnings = _beginnings(endings)
    for size in range(min(longest, len(text)), 0, -1):
        if text[-size:] in beginnings:
            return size
    return 0


class StopStrings:
    """Cuts text before the first stop string; text that may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Return the text that is safe to show now; `stopped` says that a stop string has come."""
        self._waiting += text
        places = [place for place in map(self._waiting.find, self._stops) if place >= 0]
        if places:
            self.stopped = True
            return self._release(min(places))
        return self._release(len(self._waiting) - held_back(self._waiting, self._stops))

    def flush(self) -> str:
        """Return what waited when no more text comes."""
        return "" if self.stopped else self._release(len(self._waiting))

    def _release(self, length: int) -> str:
        ready, self._waiting = self._waiting[:length], self._waiting[length:]
        return ready


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level BPE vocabularies write bytes (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def token_text(tokenizer: ChatTokenizer, token_id: int) -> tuple[str, list[int]]:
    """Return a token's text and its bytes; a token that is part of a character shows U+FFFD and its
    true bytes.
    """
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
