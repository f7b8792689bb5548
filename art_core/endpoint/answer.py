"""Parsing of an answer: thoughts, content and tool calls, of the whole text or as it grows."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Literal

import attrs

from art_core.endpoint.text import held_back
from art_core.endpoint.thoughts import TAGS, Thoughts
from art_core.endpoint.tools import MARKERS, Functions, ToolCall, bare_calls, calls_at

_BEHIND = re.compile(r" *(?:$|\n|[<\[{])")


@attrs.frozen
class Answer:
    """A model's answer: its content, its tool calls, and its thoughts if it wrote any."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    thoughts: Thoughts | None = None


def read_answer(text: str, functions: Functions, closing: str | None = None) -> Answer:
    """Parse a whole answer.

    `closing` is the tag that ends thoughts that the prompt has opened. Without it thoughts begin
    with their tag, before all other text; a closing tag without an opening one ends them too. Text
    between these tags is never a call. A call that cannot be parsed is content.
    """
    return _Reader(text, functions).read(closing)


@attrs.define
class _Reader:
    _text: str
    _functions: Functions
    _pieces: list[str] = attrs.field(factory=list)
    _calls: list[ToolCall] = attrs.field(factory=list)
    _thoughts: Thoughts | None = None
    _rest_start: int = 0

    def read(self, closing: str | None) -> Answer:
        place = self._leading_thoughts(closing)
        pattern = marker_pattern(tools=bool(self._functions))
        while (found := pattern.search(self._text, place)) is not None:
            place = self._parse(found[0], found.start())
        self._pieces.append(self._text[self._rest_start :])
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
        """Parse calls without a marker, if the rest of the text consists of such calls."""
        calls = bare_calls(self._text, place, self._functions) if self._functions else []
        if not calls:
            return place
        self._calls, self._rest_start = calls, len(self._text)
        return self._rest_start

    def _think(self, begin: int, end: int, closing: str) -> int:
        """Cut out the thoughts between two places; return the place where the content begins."""
        raw = self._text[begin:end]
        thoughts = raw.strip()
        behind = end + len(self._text[end : end + len(closing)])
        content = len(self._text) - len(self._text[behind:].lstrip())
        start = begin + len(raw) - len(raw.lstrip())
        self._thoughts = Thoughts(
            thoughts, self._text[:start], self._text[start + len(thoughts) : content]
        )
        self._pieces, self._calls, self._rest_start = [], [], content
        return self._bare(content)

    def _parse(self, marker: str, start: int) -> int:
        """Parse the text after a marker; return the place to continue at."""
        if marker in TAGS:
            end = self._text.find(TAGS[marker], start)
            return start + len(marker) if end < 0 else end + len(TAGS[marker])
        if marker in TAGS.values():
            ends = self._thoughts is None and _stands_apart(self._text, start, marker)
            return self._think(0, start, marker) if ends else start + len(marker)
        read = calls_at(self._text, marker, start, self._functions)
        if read is None:
            return start + len(marker)
        self._pieces.append(self._text[self._rest_start : start])
        self._calls += read[0]
        self._rest_start = read[1]
        return self._rest_start


def _stands_apart(text: str, start: int, closing: str) -> bool:
    """Return whether a closing tag ends thoughts, and is not part of a sentence."""
    behind = _BEHIND.match(text, start + len(closing))
    return text[max(0, start - 1) : start] in ("", "\n") or behind is not None


@functools.cache
def markers(*, tools: bool) -> tuple[str, ...]:
    """Return the tags that begin or end thoughts and, with `tools`, those that begin a call."""
    return (*TAGS, *TAGS.values(), *(MARKERS if tools else ()))


@functools.cache
def marker_pattern(*, tools: bool) -> re.Pattern[str]:
    """Return a pattern that matches the `markers`."""
    return re.compile("|".join(map(re.escape, markers(tools=tools))))


State = Literal["start", "thoughts", "after thoughts", "content", "hold"]


@attrs.frozen
class Shown:
    """Text to send; `thoughts` is None if the answer has no thoughts so far."""

    content: str = ""
    thoughts: str | None = None

    def then(self, other: Shown) -> Shown:
        """Return this text followed by another."""
        thoughts = [each.thoughts for each in (self, other) if each.thoughts is not None]
        return Shown(self.content + other.content, "".join(thoughts) if thoughts else None)


NOTHING = Shown()


class GrowingAnswer:
    """Parses an answer piece by piece: which text can be sent while the rest is still to come?

    Text that may become a tag or a call is held back. From the first marker in the content on, all
    text is held until the end, when the whole answer is parsed. `closing` is as in `read_answer`.
    """

    def __init__(self, functions: Functions, closing: str | None = None) -> None:
        self._functions, self._closing, self._opened = functions, closing, closing
        self._markers = markers(tools=bool(functions))
        self._pattern = marker_pattern(tools=bool(functions))
        self._state: State = "start"
        self._steps: dict[State, Callable[[], Shown]] = {
            "start": self._start,
            "thoughts": self._think,
            "after thoughts": self._leave_thoughts,
            "content": self._speak,
        }
        self._parts: list[str] = []
        self._waiting = ""
        self._content: list[str] = []
        self._thoughts: list[str] = []

    def add(self, text: str) -> Shown:
        """Add text to the answer; return the text that can be sent now."""
        self._parts.append(text)
        if self._state == "hold" or not text:
            return NOTHING
        self._waiting += text
        before, shown = None, NOTHING
        while self._state not in (before, "hold"):
            before = self._state
            shown = shown.then(self._steps[before]())
        self._content.append(shown.content)
        self._thoughts += [] if shown.thoughts is None else [shown.thoughts]
        return shown

    def end(self) -> tuple[Shown, Answer]:
        """Return the rest of the text to send, and the whole answer."""
        answer = read_answer("".join(self._parts), self._functions, self._closing)
        content, thoughts = "".join(self._content), "".join(self._thoughts)
        if answer.content.startswith(content):
            rest = answer.content[len(content) :]
        else:
            # Thoughts without an opening tag: their beginning was sent as content.
            rest, thoughts = answer.content, content.lstrip()
        if answer.thoughts is None or (self._thoughts and thoughts == answer.thoughts.text):
            return Shown(rest), answer
        return Shown(rest, answer.thoughts.text[len(thoughts) :]), answer

    def _start(self) -> Shown:
        text = self._waiting.lstrip()
        tag = next((tag for tag in TAGS if text.startswith(tag)), None)
        if tag is not None:
            self._waiting, self._opened, self._state = text[len(tag) :], TAGS[tag], "thoughts"
            return Shown(thoughts="")
        if not text or any(tag.startswith(text) for tag in TAGS):
            return NOTHING
        if self._opened is not None:
            self._state = "thoughts"
            return Shown(thoughts="")
        self._state = self._after(text)
        return NOTHING

    def _think(self) -> Shown:
        assert self._opened is not None
        if not any(self._thoughts):
            self._waiting = self._waiting.lstrip()
        end = self._waiting.find(self._opened)
        if end >= 0:
            text = self._waiting[:end].rstrip()
            self._waiting = self._waiting[end + len(self._opened) :]
            self._state = "after thoughts"
            return Shown(thoughts=text)
        return Shown(thoughts=self._take(self._sure((self._opened,)).rstrip()))

    def _leave_thoughts(self) -> Shown:
        self._waiting = self._waiting.lstrip()
        if self._waiting:
            self._state = self._after(self._waiting)
        return NOTHING

    def _speak(self) -> Shown:
        found = self._pattern.search(self._waiting)
        if found is not None:
            self._state = "hold"
            return Shown(self._waiting[: found.start()].rstrip())
        text = self._sure(self._markers)
        return Shown(self._take(text.rstrip() if self._functions else text))

    def _after(self, text: str) -> State:
        """Return the state in which content begins: it may be calls without a marker, an object or
        a list of objects.
        """
        inside = text[1:].lstrip() if text[0] == "[" else text
        if self._functions and not inside:
            return self._state  # more must come
        return "hold" if self._functions and inside[0] == "{" else "content"

    def _sure(self, endings: tuple[str, ...]) -> str:
        return self._waiting[: len(self._waiting) - held_back(self._waiting, endings)]

    def _take(self, text: str) -> str:
        self._waiting = self._waiting[len(text) :]
        return text


class RawAnswer:
    """The answer to a raw prompt: its text as it comes, with thoughts and calls as text."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, text: str) -> Shown:
        """Add text to the answer; return it."""
        self._parts.append(text)
        return Shown(text)

    def end(self) -> tuple[Shown, Answer]:
        """Return no more text, and the whole answer."""
        return NOTHING, Answer("".join(self._parts))
