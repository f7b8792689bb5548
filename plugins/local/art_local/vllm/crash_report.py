"""What the end of a server's log tells: what was raised last, and what is more than progress."""

from __future__ import annotations

import os
import re
from pathlib import Path

END_BYTES = 262_144
END_LINES = 12
RAISED_LINES = 2
LINE_LETTERS = 400
"""So much takes vLLM to say which context would fit into the memory of a small GPU."""
PREFIX = re.compile(r"^\([^)]*\) (?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?")
RAISED = re.compile(r"^[\w.]*(?:Error|Exception)(?:: .+)?$")
SECOND_HAND = "EngineDeadError"
"""What vLLM raises for every request once its core has raised something else."""
NOISE = re.compile(
    r"^- leaked |nanobind|- \.\.\. skipped|resource_tracker|^warnings\.warn\(|\^\^\^\^"
)


def log_end(log_file: Path, since: int = 0) -> str:
    """Return in one line what a log tells from a byte on, the last errors first; a message of ours
    carries it.
    """
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since if since <= size else 0, size - END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [text[:LINE_LETTERS] for line in lines if (text := PREFIX.sub("", line.strip()))]
    more = [line for line in told if not (_is_progress(line) or NOISE.search(line))]
    raised = [line for line in more if RAISED.match(line) and SECOND_HAND not in line]
    last_raised = list(dict.fromkeys(reversed(raised)))[:RAISED_LINES][::-1]
    rest = [line for line in more[-END_LINES:] if line not in last_raised]
    return " | ".join([*last_raised, *rest] or told[-3:])


def _is_progress(line: str) -> bool:
    return " INFO " in line or line.startswith("INFO")
