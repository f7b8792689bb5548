"""Progress as whole lines, for a log or a pipe: no carriage return and no bar drawn over itself."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from art_core.base.progress import interval_s


class LineProgress(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that prints one line when it begins, one every `interval_s()` while it moves, and
    one when it ends. Libraries that take a `tqdm_class` can be given this class.
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
            self.fp.write(f"{line}\n")  # one write, so that no other thread's text comes between
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
