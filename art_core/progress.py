"""Progress bars: drawn as they move where somebody watches, once a minute in a log."""

from __future__ import annotations

import os
import sys
from typing import Any

SETTING = "TQDM_MININTERVAL"


def progress_bar(**options: Any) -> Any:
    """Return a tqdm bar that is drawn when it begins, every `interval_s()` and when it ends."""
    from tqdm import tqdm

    every_s = interval_s()
    # tqdm's monitor draws a bar anew that was not drawn for `maxinterval`
    return tqdm(**options, mininterval=every_s, maxinterval=max(every_s, 10.0))


def interval_s() -> float:
    """Return the seconds between two drawings of a bar: a tenth in a terminal or a notebook, 60
    where standard error is a file or a pipe, unless `TQDM_MININTERVAL` says otherwise.
    """
    # a notebook's standard error is no terminal
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return float(os.environ.get(SETTING, "0.1" if watched else "60"))
