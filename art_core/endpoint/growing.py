"""An answer as it grows: what of it can be shown while the rest is still to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs

from art_core.endpoint.answer import Answer, marker_pattern, markers, read_answer
from art_core.endpoint.text import held_back
from art_core.endpoint.thoughts import TAGS
from art_core.endpoint.tools import Functions

State = Literal["start", "thoughts", "behind thoughts", "content", "held"]


@attrs.frozen
class Shown:
    """Text to be shown; `thoughts` is None where nothing is known of thoughts."""

    content: str = ""
    thoughts: str | None = None

    def then(self, other: Shown) -> Shown:
        """Return this text and what follows it."""
        thoughts = [each.thoughts for each in (self, other) if each.thoughts is not None]
        return Shown(self.content + other.content, "".join(thoughts) if thoughts else None)


NOTHING = Shown()


class GrowingAnswer:
    """Shows an answer piece by piece. Each piece is looked at once.

    What may become a tag or a call is held back. From the first marker in the content on, all is
    held until the end, when the whole text is read. `closing` is that of `read_answer`.
    """

    def __init__(self, functions: Functions, closing: str | None = None) -> None:
        self._functions, self._closing, self._opened = functions, closing, closing
        self._markers = markers(tools=bool(functions))
        self._pattern = marker_pattern(tools=bool(functions))
        self._state: State = "start"
        self._steps: dict[State, Callable[[], Shown]] = {
            "start": self._start,
            "thoughts": self._think,
            "behind thoughts": self._leave_thoughts,
            "content": self._speak,
        }
        self._parts: list[str] = []
        self._waiting = ""
        self._content: list[str] = []
        self._thoughts: list[str] = []

    def add(self, text: str) -> Shown:
        """Take what the answer grew by; return what can be shown now."""
        self._parts.append(text)
        if self._state == "held" or not text:
            return NOTHING
        self._waiting += text
        before, shown = None, NOTHING
        while self._state not in (before, "held"):
            before = self._state
            shown = shown.then(self._steps[before]())
        self._content.append(shown.content)
        self._thoughts += [] if shown.thoughts is None else [shown.thoughts]
        return shown

    def end(self) -> tuple[Shown, Answer]:
        """Return what is left to be shown, and the whole answer."""
        answer = read_answer("".join(self._parts), self._functions, self._closing)
        content, thoughts = "".join(self._content), "".join(self._thoughts)
        if answer.content.startswith(content):
            rest = answer.content[len(content) :]
        else:
            # Thoughts without an opening tag: their beginning was shown as content.
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
            self._state = "behind thoughts"
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
            self._state = "held"
            return Shown(self._waiting[: found.start()].rstrip())
        text = self._sure(self._markers)
        return Shown(self._take(text.rstrip() if self._functions else text))

    def _after(self, text: str) -> State:
        """Return the state in which content begins: it may be calls without a marker, an object or
        a list of them.
        """
        inside = text[1:].lstrip() if text[0] == "[" else text
        if self._functions and not inside:
            return self._state  # more must come
        return "held" if self._functions and inside[0] == "{" else "content"

    def _sure(self, endings: tuple[str, ...]) -> str:
        return self._waiting[: len(self._waiting) - held_back(self._waiting, endings)]

    def _take(self, text: str) -> str:
        self._waiting = self._waiting[len(text) :]
        return text
