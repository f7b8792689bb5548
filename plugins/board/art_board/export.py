"""One run as one HTML file: the page, its scripts and what it would ask the server for."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from art_board import conversations, details
from art_board.curves import AXIS_KEYS, curves_of
from art_board.library import Listed, run_id
from art_core import ArtError, LoggedRun
from art_core.reports.board import read_place
from art_core.reports.follow import Follower

STATIC = Path(__file__).parent / "static"
MAX_BYTES = 30_000_000
"""Attempts are left out beyond this size; the page states how many steps it has."""
_POINTS = 1000
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
_ESCAPED = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def write_page(run: LoggedRun, out: Path) -> int:
    """Write a run as an HTML file; return its size in bytes."""
    state = run.state()
    place = read_place(run, state.status)
    entry = Listed(id=run_id(run), run=run, status=state.status, place=place, reason=state.reason)
    return out.write_bytes(page_of(entry).encode())


def page_of(entry: Listed) -> str:
    """Return a run's page: one HTML text that loads nothing and runs only its own script."""
    data = orjson.dumps(answers(entry), default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    for character, escaped in _ESCAPED.items():
        data = data.replace(character, escaped)
    library = (STATIC / "uplot" / "uPlot.iife.min.js").read_text()
    styles = (STATIC / "uplot" / "uPlot.min.css").read_text() + (STATIC / "style.css").read_text()
    script = f"{library}\n(() => {{\n'use strict';\n{''.join(modules_of('app').values())}}})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(styles)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = (STATIC / "index.html").read_text()
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{styles}</style>\n'
    )
    body = (
        f'<script type="application/json" id="answers">{data}</script>\n<script>{script}</script>\n'
    )
    page = re.sub(r"<!-- loaded -->.*?<!-- end -->\n", lambda _: head, page, flags=re.DOTALL)
    return page.replace("</body>", f"{body}</body>")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def modules_of(name: str, found: dict[str, str] | None = None) -> dict[str, str]:
    """Return the scripts that a module needs and its own, in an order in which one scope can hold
    them.
    """
    found = {} if found is None else found
    text = (STATIC / f"{name}.js").read_text()
    for needed in _IMPORT.findall(text):
        if needed not in found:
            modules_of(needed, found)
    return found | {name: found.setdefault(name, _EXPORT.sub("", _IMPORT.sub("", text)))}


def answers(entry: Listed) -> dict[str, Any]:
    """Return what the server would answer about a run, by address."""
    run, start = entry.run, f"/api/run/{entry.id}"
    about = details.overview(entry)
    # The file goes to others: it names the run, not where it is on this machine.
    about["path"] = run.name
    found: dict[str, Any] = {start: about, "run": entry.id}
    keys = sorted(about["metrics"])
    follower = Follower(run)
    follower.read({*keys, *AXIS_KEYS})
    found[f"{start}/curves"] = curves_of(follower, keys, points=_POINTS)
    found[f"{start}/purchases"] = details.purchases(entry)
    found[f"{start}/findings"] = details.findings(entry)
    found[f"{start}/evaluations"] = details.evaluations(entry)
    steps, size = conversations.stored_steps(run), 0
    kept: dict[str, list[int]] = {}
    for split, step in _spread(steps):
        try:
            answer = dict(_attempts(run, start, split, step))
        except (ArtError, OSError):
            continue
        size += sum(len(orjson.dumps(each, default=str)) for each in answer.values())
        if size > MAX_BYTES:
            break
        found |= answer
        kept.setdefault(split, []).append(step)
    found[f"{start}/steps"] = {split: sorted(those) for split, those in kept.items()}
    found["left_out"] = sum(map(len, steps.values())) - sum(map(len, kept.values()))
    return found


def _spread(steps: dict[str, list[int]]) -> Iterable[tuple[str, int]]:
    """Yield steps of each split: the last, the first, then those half way between."""
    for split, all_steps in steps.items():
        seen: dict[int, None] = {}
        count = len(all_steps)
        pieces = 1
        while count and len(seen) < count:
            for n in range(pieces, -1, -1):
                seen.setdefault(all_steps[n * (count - 1) // pieces])
            pieces *= 2
        yield from ((split, step) for step in seen)


def _attempts(run: LoggedRun, start: str, split: str, step: int) -> Iterable[tuple[str, Any]]:
    groups = run.groups(step, split)
    yield f"{start}/groups?split={split}&step={step}", conversations.groups_in(groups)
    for number, group in enumerate(groups):
        for place in range(len(group.trajectories)):
            address = f"{start}/attempt?group={number}&place={place}&split={split}&step={step}"
            yield address, conversations.whole_attempt(group, number, place)
