"""How a model writes tool calls: read from its chat template, by a conversation that has some."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from art_core.endpoint.tools import FUNCTION, HERMES, HERMES_END, MARKER_TOKENS, MARKERS

Part = Literal["name", "arguments", "id"]
Piece = tuple[Literal["text"], str] | tuple[Part, str]
_ASKED = "artquestion"
_NAMES, _IDS = ("artfunctiona", "artfunctionb"), ("artcall0a", "artcall0b")
_KEY, _VALUES = "artkey", ("artvaluea", "artvalueb")
_ARGUMENTS = r'\{\s*"artkey"\s*:\s*"artvalue[ab]"\s*\}'
_SENTINELS = re.compile(
    rf"(?P<name>artfunction[ab])|(?P<id>artcall0[ab])|(?P<arguments>{_ARGUMENTS})"
)
_TAGGED = re.compile(
    r"<function=artfunctiona>\s*<parameter=artkey>\s*artvaluea\s*</parameter>\s*</function>"
)


@attrs.frozen(kw_only=True)
class CallFormat:
    """The texts around calls: `opening`, calls with `between` (None: the model writes one call
    only), `closing`. `call` are the pieces of a call; a `tagged` one is Qwen's
    `<function=name>` with its parameters.
    """

    opening: str
    call: tuple[Piece, ...]
    between: str | None
    closing: str
    tagged: bool = False

    @property
    def marker(self) -> str | None:
        """The text by which a call is known, if there is one."""
        return next((marker for marker in MARKERS if self.opening.startswith(marker)), None)


_JSON_CALL: tuple[Piece, ...] = (
    ("name", ""), ("text", '", "arguments": '), ("arguments", ""),
)  # fmt: skip
USUAL = CallFormat(
    opening=f'{HERMES}\n{{"name": "',
    call=_JSON_CALL,
    between=f'}}\n{HERMES_END}\n{HERMES}\n{{"name": "',
    closing=f"}}\n{HERMES_END}",
)
"""The form of Hermes, for templates that write no calls."""


def call_format(tokenizer: Any) -> CallFormat:
    """Return the form in which a tokenizer's chat template writes calls that the endpoint reads."""
    one = _written(tokenizer, 1)
    if one is None:
        return USUAL
    two = _written(tokenizer, 2)
    tagged = _TAGGED.search(one)
    if tagged is not None:
        return _tagged_format(one[: tagged.start()], one[tagged.end() :], two)
    found = list(_SENTINELS.finditer(one))
    if {"name", "arguments"} - {match.lastgroup for match in found}:
        return USUAL
    return CallFormat(
        opening=one[: found[0].start()],
        call=tuple(_pieces(one, found)),
        between=None if two is None else _between(two, len(found)),
        closing=one[found[-1].end() :],
    )


def _tagged_format(before: str, after: str, two: str | None) -> CallFormat:
    several = two is not None and two.count(FUNCTION) == 2
    return CallFormat(
        opening=before,
        call=(),
        between=f"{after}\n{before}" if several else None,
        closing=after,
        tagged=True,
    )


def _pieces(text: str, found: Sequence[re.Match[str]]) -> list[Piece]:
    pieces: list[Piece] = []
    end = found[0].start()
    for match in found:
        if match.start() > end:
            pieces.append(("text", text[end : match.start()]))
        kind: Any = match.lastgroup
        pieces.append((kind, ""))
        end = match.end()
    return pieces


def _between(two: str, parts: int) -> str | None:
    found = list(_SENTINELS.finditer(two))
    if len(found) != 2 * parts:
        return None
    return two[found[parts - 1].end() : found[parts].start()]


def _written(tokenizer: Any, count: int) -> str | None:
    """Return what a model writes to make some calls; None if the template does not show it."""
    calls = [
        {"type": "function", "id": i, "function": {"name": n, "arguments": {_KEY: v}}}
        for i, n, v in zip(_IDS, _NAMES, _VALUES, strict=True)
    ][:count]
    tools = [
        {"type": "function", "function": {"name": n, "description": "", "parameters": _SCHEMA}}
        for n in _NAMES
    ]
    user = {"role": "user", "content": _ASKED}
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        text = tokenizer.apply_chat_template([user, answer], tools=tools, tokenize=False)
    except Exception:  # a template may refuse calls, or several of them
        return None
    behind = str(text).rpartition(_ASKED)[2]
    first, last = behind.find(_NAMES[0]), behind.rfind(_VALUES[count - 1])
    if first < 0 or last < 0:
        return None
    return behind[_start(behind, first) : _end(behind, last, tokenizer)].rstrip()


_SCHEMA = {"type": "object", "properties": {_KEY: {"type": "string"}}}


def _start(text: str, name: int) -> int:
    """Return where the first call begins: at a marker, else at its JSON."""
    marked = [place for marker in MARKERS if 0 <= (place := text.find(marker)) < name]
    if marked:
        return min(marked)
    places = [place for letter in "[{" if 0 <= (place := text.find(letter)) < name]
    return min(places, default=name)


def _end(text: str, last: int, tokenizer: Any) -> int:
    """Return where the answer ends: before the first special token behind the last call."""
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    places = [text.find(token, last) for token in special - {*MARKER_TOKENS}]
    return min((place for place in places if place >= 0), default=len(text))


def quoted(name: str) -> str:
    """Return a name as it stands between the quotes of JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]
