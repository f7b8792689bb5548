"""The report of a server's crash: the last errors and lines of its log, without progress lines."""

from __future__ import annotations

import os
import re
from pathlib import Path

END_BYTES = 262_144
END_LINES = 12
RAISED_LINES = 2
LINE_LETTERS = 400
"""vLLM needs this many to report which context would fit into the memory of a small GPU."""
PREFIX = re.compile(r"^\([^)]*\) (?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?")
RAISED = re.compile(r"^[\w.]*(?:Error|Exception)(?:: .+)?$")
CONSEQUENCE = "EngineDeadError"
"""vLLM raises it for every request once its core has raised another error."""
NOISE = re.compile(
    r"^- leaked |nanobind|- \.\.\. skipped|resource_tracker|^warnings\.warn\(|\^\^\^\^"
)


def crash_report(log_file: Path, since: int = 0) -> str:
    """Return the end of a log in one line for an error message, from a byte on, the last errors
    first.
    """
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since if since <= size else 0, size - END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    texts = [text[:LINE_LETTERS] for line in lines if (text := PREFIX.sub("", line.strip()))]
    useful = [line for line in texts if not (_is_progress(line) or NOISE.search(line))]
    raised = [line for line in useful if RAISED.match(line) and CONSEQUENCE not in line]
    last_raised = list(dict.fromkeys(reversed(raised)))[:RAISED_LINES][::-1]
    rest = [line for line in useful[-END_LINES:] if line not in last_raised]
    return " | ".join([*last_raised, *rest] or texts[-3:])


def _is_progress(line: str) -> bool:
    return " INFO " in line or line.startswith("INFO")
