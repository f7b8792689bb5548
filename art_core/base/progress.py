"""Progress: bars in a terminal or a notebook, whole lines at intervals in a log or a pipe."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import suppress
from typing import Any

from art_core.base.errors import ConfigError

FORM, SETTING = "ART_PROGRESS", "TQDM_MININTERVAL"
_FORMS = ("bars", "lines")


def progress_bar(**options: Any) -> Any:
    """Return a tqdm bar. Where no bar can be drawn, it prints lines: when it begins, every
    `interval_s()`, and when it ends.
    """
    from tqdm import tqdm

    line_class = line_progress()
    if line_class is not None:
        return line_class(**options)
    every_s = interval_s()
    # tqdm's monitor draws a bar anew that was not drawn for `maxinterval`
    return tqdm(**options, mininterval=every_s, maxinterval=max(every_s, 10.0))


def line_progress() -> Any | None:
    """Return the class whose progress is whole lines, for a library that takes a `tqdm_class`; None
    where bars are drawn.
    """
    return None if draws_bars() else _line_class()


@functools.cache
def _line_class() -> Any:
    """Make the class on first use: importing tqdm takes long."""
    from tqdm import tqdm

    class LineProgress(tqdm):  # type: ignore[type-arg]
        """A tqdm bar that prints one line when it begins, one every `interval_s()` while it moves,
        and one when it ends. No carriage return and no bar is drawn.
        """

        _printed: tuple[object, ...] = ()

        def __init__(self, *args: Any, **options: Any) -> None:
            every_s = interval_s()
            options |= {"mininterval": every_s, "maxinterval": max(every_s, 10.0), "miniters": 1}
            options |= {"ncols": 0, "dynamic_ncols": False}
            super().__init__(*args, **options)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:  # noqa: ARG002
            """Print a line, unless it would repeat the last one."""
            line = " ".join((str(self) if msg is None else msg).splitlines())
            shown = (self.n, self.total, self.desc, self.postfix)
            if line and shown != self._printed:
                self._printed = shown
                # tqdm holds its lock here and keeps it after an error, so that a later bar would
                # wait for ever. A closed pipe or a full disk must not end the work either.
                with suppress(OSError):
                    self.fp.write(f"{line}\n")  # one write: other threads print whole lines, too
                    self.fp.flush()

        def clear(self, nolock: bool = False) -> None:  # noqa: FBT001, FBT002
            """Do nothing: a printed line stays."""

        def close(self) -> None:
            """Print the last line."""
            if self.disable:
                return
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]

    return LineProgress


def draws_bars() -> bool:
    """Return whether progress is drawn as bars: in a terminal and in a notebook, or as
    `ART_PROGRESS` chooses.
    """
    form = os.environ.get(FORM)
    if form is not None and form not in _FORMS:
        raise ConfigError(f"{FORM} must be {' or '.join(_FORMS)}, got {form!r}")
    if form is not None:
        return form == "bars"
    # a notebook's standard error is no terminal
    return "ipykernel" in sys.modules or bool(sys.stderr and sys.stderr.isatty())


def interval_s() -> float:
    """Return the seconds between two updates of a bar: a tenth where bars are drawn, 60 elsewhere,
    unless `TQDM_MININTERVAL` gives another number.
    """
    return float(os.environ.get(SETTING, "0.1" if draws_bars() else "60"))


def child_settings() -> dict[str, str]:
    """Return environment variables for a process whose standard error this one copies to its own:
    it shows progress as this process does.
    """
    return {FORM: "bars" if draws_bars() else "lines", SETTING: str(interval_s())}


def final_lines(text: str) -> tuple[str, str]:
    """Return the whole lines of another program's output, without what it has drawn over, and the
    unfinished rest.
    """
    whole, newline, rest = text.rpartition("\n")
    lines = (line.removesuffix("\r").rpartition("\r")[2] for line in whole.split("\n"))
    return "".join(f"{line}\n" for line in lines) if newline else "", rest


def print_line(line: str) -> None:
    """Print a line to standard error, whole, and beside any progress bar."""
    from tqdm import tqdm

    # One write: text of other threads must not come before the line's end. Without a reader of
    # standard error, as after `2>&1 | head`, the line is lost.
    with suppress(OSError):
        tqdm.write(f"{line}\n", file=sys.stderr, end="")
