"""Output of commands: text for people, or one JSON document for programs."""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import singledispatch
from typing import Any, TextIO

import attrs
import orjson

from art_core.cli.table import table_lines
from art_core.hooks.commands import ExitStatus, Output, Record, Table

_BITS_63 = 1 << 63


def print_text(parts: Iterable[Output], *, paged: bool = False) -> int:
    """Print a command's parts as text, each as it comes; return the exit status.

    With `paged`, text that is longer than the terminal goes through `$PAGER` (else `less`), all at
    once. Output into a file or a pipe is never paged.
    """
    status = 0
    size = shutil.get_terminal_size((80, 24))
    paged = paged and is_terminal(sys.stdout)
    kept: list[str] = []
    for part in parts:
        status = status or _status(part)
        for line in _lines(part, size.columns):
            if paged:
                kept.append(line)
            else:
                _write(line, sys.stdout)
        sys.stdout.flush()
    if kept:
        _page(kept, size)
        sys.stdout.flush()
    return status


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person reads a stream as it comes."""
    return stream.isatty()


def _page(lines: Sequence[str], size: os.terminal_size) -> None:
    rows = sum(max(1, math.ceil(len(line) / size.columns)) for line in lines)
    if rows < size.lines:
        for line in lines:
            _write(line, sys.stdout)
        return
    import pydoc  # takes long to load

    os.environ.setdefault("LESS", "FRX")  # as git does: colours, and no screen of its own
    pydoc.pager("\n".join(lines) + "\n")


def _lines(part: Output, width: int) -> Iterable[str]:
    if isinstance(part, Table):
        return table_lines(part, width)
    if isinstance(part, ExitStatus):
        return ()
    return part.text if isinstance(part, Record) else [part]


def _status(part: Output) -> int:
    return part.status if isinstance(part, ExitStatus) else 0


def print_json(parts: Iterable[Output]) -> int:
    """Print a command's parts as one JSON object, after the last one; return the exit status.

    Text for people goes to standard error, also text that a plugin prints. The object of a
    command that returns only text has it in `lines`.
    """
    with contextlib.redirect_stdout(sys.stderr):
        answer = list(parts)
        document = _document(part for part in answer if not isinstance(part, ExitStatus))
    text = orjson.dumps(plain(document), option=orjson.OPT_INDENT_2).decode()
    if not text.isascii():
        # In ASCII every terminal and pipe takes it as it is.
        text = re.sub("[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    print(text)
    sys.stdout.flush()
    return max(map(_status, answer), default=0)


def _document(parts: Iterable[str | Table | Record]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    lines: list[str] = []
    for part in parts:
        if isinstance(part, Table):
            document.setdefault(part.name, []).extend(part.rows)
        elif isinstance(part, Record):
            document.update(part.values)
        elif part:
            lines.append(part)
            _write(part, sys.stderr)
    return document or {"lines": lines}


@singledispatch
def plain(value: Any) -> Any:
    """Return a value for orjson: null for numbers that are not finite, ISO 8601 for times, and the
    text of values without a JSON type.
    """
    if attrs.has(type(value)):
        return plain(attrs.asdict(value, recurse=False))
    return [plain(item) for item in value] if isinstance(value, Iterable) else plain(str(value))


@plain.register
def _list(value: list) -> list[Any]:  # type: ignore[type-arg]
    # A long curve is taken as it is: orjson writes null for what is not finite.
    kinds = set(map(type, value))
    if kinds == {float} or (kinds == {int} and -_BITS_63 <= min(value) <= max(value) < _BITS_63):
        return value
    return [plain(item) for item in value]


@plain.register(bool)
@plain.register(type(None))
def _same(value: Any) -> Any:
    return value


@plain.register
def _text(value: str) -> str:
    # A file's name that is not UTF-8 has characters that no JSON reader takes.
    return value.encode("utf-8", "backslashreplace").decode()


@plain.register
def _whole(value: numbers.Integral) -> Any:
    whole = int(value)
    # orjson writes whole numbers of 64 bits.
    return whole if -_BITS_63 <= whole < _BITS_63 else orjson.Fragment(str(whole))


@plain.register
def _real(value: numbers.Real) -> float | None:
    return float(value) if math.isfinite(value) else None


@plain.register
def _time(value: date) -> str:
    return value.isoformat()


@plain.register
def _mapping(value: Mapping) -> dict[str, Any]:  # type: ignore[type-arg]
    return {str(plain(key)): plain(item) for key, item in value.items()}


def _write(line: str, stream: Any) -> None:
    encoding = stream.encoding or "utf-8"
    print(
        line.encode(encoding, "replace").decode(encoding), file=stream, flush=stream is sys.stderr
    )
