"""Beside the second stop: which token ids stood behind the text that this endpoint has served.

A client sends a conversation back as text, and text does not tell how it was sampled: a model that
wrote "ab" as two tokens would find it again as one. So a rendered prompt that begins with a prompt
that was served, the answer to it, and the token that ends an answer, keeps the ids of that prompt
and that answer; only what follows is tokenised. The text decides alone. Where a template renders an
answer in other words (thoughts dropped, arguments written anew), the whole prompt is tokenised, as
it is when nothing is known of its beginning.

Two answers of the same text in different tokens cannot be told apart: the newer one stands.
"""

from __future__ import annotations

import hashlib
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from art_core.endpoint.engine import ChatTokenizer
from art_core.endpoint.thoughts import Spellings

MAX_IDS = 1 << 24
"""Ids that are remembered, four bytes each; the least recently used conversations go first."""

Render = Callable[..., Any]
"""Renders the messages of a request: to ids, or with `tokenize=False` to text."""


@attrs.define(eq=False)
class _Spelling:
    """How a tokenizer writes: whether its chat prompts are the encoding of their text, and the
    texts of the tokens that end an answer.
    """

    tokenizer: ChatTokenizer
    faithful: bool
    ends: dict[str, int] = attrs.field(factory=dict)

    def learn_end(self, token_id: int | None) -> None:
        """Remember how a token that ends answers is written, unless it is written as nothing."""
        if token_id is None:
            return
        written = self.tokenizer.decode([token_id], skip_special_tokens=False)
        if written:
            self.ends[written] = token_id

    def without_end(self, answer_ids: Sequence[int]) -> Sequence[int]:
        """Cut the end token off; engines may know more of them than the tokenizer."""
        if not answer_ids or answer_ids[-1] not in self.tokenizer.all_special_ids:
            return answer_ids
        self.learn_end(answer_ids[-1])
        return answer_ids[:-1]

    def digests(self, text: str, places: Sequence[int]) -> list[bytes]:
        """Return a digest of the text before each of some rising places."""
        digest, start, found = hashlib.blake2b(b"%d" % id(self.tokenizer), digest_size=16), 0, []
        for place in places:
            digest.update(text[start:place].encode())
            found.append(digest.digest())
            start = place
        return found

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, before: int, token_ids: Sequence[int]) -> str | None:
        """Return what ids say after the id `before`: some tokenizers place spaces by it."""
        start = self.tokenizer.decode([before], skip_special_tokens=False)
        whole = self.tokenizer.decode([before, *token_ids], skip_special_tokens=False)
        return whole[len(start) :] if whole.startswith(start) else None


class Transcripts:
    """Remembers the newest `max_ids` token ids by a digest of their text. Safe under threads."""

    def __init__(self, max_ids: int = MAX_IDS) -> None:
        self.spellings = Spellings()
        self._max_ids = max_ids
        self._ids: OrderedDict[bytes, array[int]] = OrderedDict()
        self._size = 0
        self._spellings: dict[int, _Spelling] = {}
        self._lock = threading.Lock()

    def prompt(self, render: Render, tokenizer: ChatTokenizer) -> tuple[str | None, list[int]]:
        """Return a rendered prompt as text and as ids; the text is None where ids are no encoding
        of it, and nothing is remembered then.
        """
        spelling = self._spellings.get(id(tokenizer))
        text = render(tokenize=False)  # before ids: `render` refuses texts that are far too long
        if spelling is not None and not spelling.faithful:
            return None, _ids(render(tokenize=True))
        if spelling is None:
            return self._first_prompt(text, _ids(render(tokenize=True)), tokenizer)
        return text, self._known(text, spelling) or spelling.encode(text)

    def keep(
        self,
        tokenizer: ChatTokenizer,
        prompt: str,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
    ) -> None:
        """Remember an answer to a prompt of this text, its end token included."""
        spelling = self._spellings[id(tokenizer)]
        answer_ids = spelling.without_end(answer_ids)
        answer = spelling.text(prompt_ids[-1], answer_ids)
        if answer is None:
            return
        key = spelling.digests(prompt + answer, [len(prompt) + len(answer)])[0]
        ids = array("I", [*prompt_ids, *answer_ids])
        with self._lock:
            self._size += len(ids) - len(self._ids.pop(key, ()))
            self._ids[key] = ids
            while self._size > self._max_ids:
                _, oldest = self._ids.popitem(last=False)
                self._size -= len(oldest)

    def _first_prompt(
        self, text: Any, ids: list[int], tokenizer: ChatTokenizer
    ) -> tuple[str | None, list[int]]:
        spelling = _Spelling(tokenizer, faithful=False)
        spelling.learn_end(tokenizer.eos_token_id)
        spelling.faithful = isinstance(text, str) and spelling.encode(text) == ids
        self._spellings[id(tokenizer)] = spelling
        return (text if spelling.faithful else None), ids

    def _known(self, text: str, spelling: _Spelling) -> list[int] | None:
        """Return the ids of a text whose beginning was served, the longest such beginning."""
        ends = list(spelling.ends)  # answers of the event loop's thread may add one
        if not ends:
            return None
        places = [found.start() for found in re.finditer("|".join(map(re.escape, ends)), text)]
        for place, key in reversed([*zip(places, spelling.digests(text, places), strict=True)]):
            known = self._used(key)
            if known is not None:
                # The end token stays in what is encoded: a tokenizer treats the first word of a
                # text unlike one that follows a special token.
                rest = spelling.encode(text[place:])
                return [*known, *rest] if rest[0] in spelling.ends.values() else None
        return None

    def _used(self, key: bytes) -> array[int] | None:
        """Return the ids of a digest, which are forgotten later for being used now."""
        with self._lock:
            if key not in self._ids:
                return None
            self._ids.move_to_end(key)
            return self._ids[key]


def _ids(rendered: Any) -> list[int]:
    ids = rendered["input_ids"] if isinstance(rendered, Mapping) else rendered
    return [int(token_id) for token_id in ids]
