"""An answer's text taken apart: thoughts, content and tool calls."""

from __future__ import annotations

import functools
import re

import attrs

from art_core.endpoint.thoughts import TAGS, Thoughts
from art_core.endpoint.tools import MARKERS, Functions, ToolCall, bare_calls, calls_at

_BEHIND = re.compile(r" *(?:$|\n|[<\[{])")


@attrs.frozen
class Answer:
    """What a model said: its thoughts, if it wrote any, its content, its calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    thoughts: Thoughts | None = None


def read_answer(text: str, functions: Functions, closing: str | None = None) -> Answer:
    """Take a whole answer apart.

    `closing` is the tag that closes thoughts which the prompt has opened. Without it thoughts begin
    with their tag, before anything else; a closing tag without an opening one ends them too. What
    stands between such tags is no call, and calls are read after the thoughts. What looks like a
    call and cannot be read is content.
    """
    return _Reader(text, functions).read(closing)


@attrs.define
class _Reader:
    _text: str
    _functions: Functions
    _pieces: list[str] = attrs.field(factory=list)
    _calls: list[ToolCall] = attrs.field(factory=list)
    _thoughts: Thoughts | None = None
    _kept: int = 0

    def read(self, closing: str | None) -> Answer:
        place = self._leading_thoughts(closing)
        pattern = marker_pattern(tools=bool(self._functions))
        while (found := pattern.search(self._text, place)) is not None:
            place = self._pass(found[0], found.start())
        self._pieces.append(self._text[self._kept :])
        content = "".join(self._pieces)
        content = content.rstrip() if self._calls else content
        return Answer(content, tuple(self._calls), self._thoughts)

    def _leading_thoughts(self, closing: str | None) -> int:
        begin, space = 0, len(self._text) - len(self._text.lstrip())
        tag = next((tag for tag in TAGS if self._text.startswith(tag, space)), None)
        if tag is not None:
            begin, closing = space + len(tag), TAGS[tag]
        if closing is None:
            return self._bare(0)
        end = self._text.find(closing, begin)
        return self._think(begin, end if end >= 0 else len(self._text), closing)

    def _bare(self, place: int) -> int:
        """Read calls without a marker, if all the rest of the text is such calls."""
        calls = bare_calls(self._text, place, self._functions) if self._functions else []
        if not calls:
            return place
        self._calls, self._kept = calls, len(self._text)
        return self._kept

    def _think(self, begin: int, end: int, closing: str) -> int:
        """Take the thoughts out that stand between two places; return where the content begins."""
        raw = self._text[begin:end]
        thoughts = raw.strip()
        behind = end + len(self._text[end : end + len(closing)])
        content = len(self._text) - len(self._text[behind:].lstrip())
        start = begin + len(raw) - len(raw.lstrip())
        self._thoughts = Thoughts(
            thoughts, self._text[:start], self._text[start + len(thoughts) : content]
        )
        self._pieces, self._calls, self._kept = [], [], content
        return self._bare(content)

    def _pass(self, marker: str, start: int) -> int:
        """Read what a marker begins; return where to go on."""
        if marker in TAGS:
            end = self._text.find(TAGS[marker], start)
            return start + len(marker) if end < 0 else end + len(TAGS[marker])
        if marker in TAGS.values():
            ends = self._thoughts is None and _stands_apart(self._text, start, marker)
            return self._think(0, start, marker) if ends else start + len(marker)
        read = calls_at(self._text, marker, start, self._functions)
        if read is None:
            return start + len(marker)
        self._pieces.append(self._text[self._kept : start])
        self._calls += read[0]
        self._kept = read[1]
        return self._kept


def _stands_apart(text: str, start: int, closing: str) -> bool:
    """Return whether a closing tag ends thoughts and is not part of a sentence."""
    behind = _BEHIND.match(text, start + len(closing))
    return text[max(0, start - 1) : start] in ("", "\n") or behind is not None


@functools.cache
def markers(*, tools: bool) -> tuple[str, ...]:
    """Return the texts that begin or end thoughts or, with tools, begin a call."""
    return (*TAGS, *TAGS.values(), *(MARKERS if tools else ()))


@functools.cache
def marker_pattern(*, tools: bool) -> re.Pattern[str]:
    """Return what finds the first of the `markers` in a text."""
    return re.compile("|".join(map(re.escape, markers(tools=tools))))
