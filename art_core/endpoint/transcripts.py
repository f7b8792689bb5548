"""The token ids of the conversations that this endpoint has served, found by their text.

A client sends a conversation back as text, which does not show how it was sampled: a model that
wrote "ab" as two tokens could get it back as one. If a rendered prompt begins with a served prompt,
its answer and the token that ends answers, it keeps the ids of that prompt and that answer. Only
the rest is tokenized. Matching is by text only. If a template renders an answer in another form
(without thoughts, or with arguments written anew), the whole prompt is tokenized.

Two answers with equal text and different tokens cannot be distinguished: the newer one is used.
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
"""Limit for the remembered ids, four bytes each; the least recently used are forgotten first."""

Render = Callable[..., Any]
"""Renders the messages of a request: to ids, or with `tokenize=False` to text."""


@attrs.define(eq=False)
class _Spelling:
    """Properties of a tokenizer: `faithful` if its chat prompts are the encoding of their text, and
    the texts of the tokens that end an answer.
    """

    tokenizer: ChatTokenizer
    faithful: bool
    ends: dict[str, int] = attrs.field(factory=dict)

    def learn_end(self, token_id: int | None) -> None:
        """Remember the text of a token that ends answers, unless it is empty."""
        if token_id is None:
            return
        written = self.tokenizer.decode([token_id], skip_special_tokens=False)
        if written:
            self.ends[written] = token_id

    def without_end(self, answer_ids: Sequence[int]) -> Sequence[int]:
        """Return the ids without the end token; engines may use others than the tokenizer's."""
        if not answer_ids or answer_ids[-1] not in self.tokenizer.all_special_ids:
            return answer_ids
        self.learn_end(answer_ids[-1])
        return answer_ids[:-1]

    def digests(self, text: str, places: Sequence[int]) -> list[bytes]:
        """Return a digest of the text before each place, in ascending order."""
        digest, start, found = hashlib.blake2b(b"%d" % id(self.tokenizer), digest_size=16), 0, []
        for place in places:
            digest.update(text[start:place].encode())
            found.append(digest.digest())
            start = place
        return found

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, before: int, token_ids: Sequence[int]) -> str | None:
        """Return the text of ids after the id `before`, on which their spaces may depend."""
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
        """Return a rendered prompt as text and as ids. If the ids are not the encoding of the text,
        the text is None, and nothing is remembered.
        """
        spelling = self._spellings.get(id(tokenizer))
        text = render(tokenize=False)  # before the ids: `render` rejects texts that are too long
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
        """Remember an answer, with its end token, to a prompt with this text."""
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
        """Return the ids of a text, with those of its longest beginning that was served."""
        ends = list(spelling.ends)  # the event loop's thread may add one meanwhile
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
        """Return the ids of a digest, and mark them as used."""
        with self._lock:
            if key not in self._ids:
                return None
            self._ids.move_to_end(key)
            return self._ids[key]


def _ids(rendered: Any) -> list[int]:
    ids = rendered["input_ids"] if isinstance(rendered, Mapping) else rendered
    return [int(token_id) for token_id in ids]
