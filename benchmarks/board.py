"""Seconds until the board shows a page, in a real headless Chromium and with a fresh server.

first_paint_s is the browser's own first contentful paint of the list, rows_10k_s and rows_1m_s are
from the address of a run with 10,000 and 1,000,000 rows to its last drawn curve, and runs_5000_s is
from the address of the list to its rows, of 5,000 runs that have summaries. again_ is the same page
once more. Each is the median of `--times`; a run of 1,000,000 rows is opened with a server of its
own each time, which has read nothing. The targets are for two cores that nothing else uses: `load`
is the load before. Needs playwright and Chromium: `make board` installs the first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".nox" / "board" / "tmp" / "board" / "bin" / "python"
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
START = datetime(2026, 3, 1, tzinfo=UTC)
TARGETS = {"first_paint_s": 0.3, "rows_10k_s": 1.0, "rows_1m_s": 5.0}
CURVES = 8


def write_run(directory: Path, rows: int) -> None:
    """Write a run as a model logs it and closes it: 17 metrics a row, a status, a summary."""
    from art_core.log.summary import read_summary
    from art_core.metrics.taxonomy import builtin_taxonomy

    directory.mkdir(parents=True)
    draw = random.Random(rows)
    with (directory / "history.jsonl").open("wb") as file:
        for n in range(1, rows + 1):
            noise, usd = draw.random(), n * 0.012
            row: dict[str, Any] = {"schema": 1, "seq": n, "attempt": 1, "step": n, "split": "train"}
            row["recorded_at"] = (START + timedelta(seconds=n)).isoformat()
            row |= {"reward/mean": n / rows + noise / 5, "reward/std_dev": noise / 3}
            row |= {"reward/exception_rate": 0.0, "loss/train": 1 - n / rows + noise / 9}
            row |= {"loss/entropy": 1.5 - noise, "loss/grad_norm": noise, "costs/gpu": 0.01}
            row |= {"costs/judge": 0.002, "costs/all": 0.012, "costs/cum/gpu": n * 0.01}
            row |= {"costs/cum/judge": n * 0.002, "costs/cum/all": usd, "time/step_wall_s": noise}
            row |= {"time/wall_clock_sec": float(n), "time/cum/wall_s": n * 0.5}
            row |= {"data/step_actor_tokens": 900.0, "data/cum/actor_tokens": n * 900.0}
            file.write(orjson.dumps(row) + b"\n")
    (directory / "status.json").write_bytes(orjson.dumps({"status": "finished"}))
    read_summary(directory / "history.jsonl", builtin_taxonomy())


def write_runs(base: Path, count: int) -> None:
    """Write runs of ten rows."""
    first = base / "p0" / "models" / "run-0"
    write_run(first, 10)
    for n in range(1, count):
        shutil.copytree(first, base / f"p{n % 10}" / "models" / f"run-{n}")


@contextmanager
def served(base: Path) -> Iterator[str]:
    """Run `art board` in a process of its own; yield its address."""
    code = "import sys; from art_core.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-u", "-c", code, "board", str(base), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


def seconds_until(browser: Any, address: str, ready: str, count: int) -> float:
    """Seconds from the address until `count` elements of a selector are there."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.locator(ready).nth(count - 1).wait_for(timeout=120_000)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    taken = time.perf_counter() - start
    context.close()
    return taken


def first_paint(browser: Any, address: str) -> float:
    """Seconds until the browser painted something of the page."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.locator("tbody tr").first.wait_for()
    entries = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return float(entries) / 1000


def address_of(url: str, base: Path, name: str) -> str:
    """Return the address of a run's curves."""
    from art_board.library import run_id
    from art_core import open_run

    return f"{url}#/run/{run_id(open_run(base / 'big' / 'models' / name))}/curves"


def measured(browser: Any, base: Path, times: int) -> dict[str, float]:
    """Return the figures."""
    found: dict[str, list[float]] = {}
    for _ in range(times):
        with served(base / "few") as url:
            found.setdefault("first_paint_s", []).append(first_paint(browser, url))
            for name, key in (("k10", "rows_10k_s"), ("m1", "rows_1m_s")):
                address = address_of(url, base / "few", name)
                for label in (key, f"again_{key}"):
                    taken = seconds_until(browser, address, "figure canvas", CURVES)
                    found.setdefault(label, []).append(taken)
        with served(base / "many") as url:
            for label in ("runs_5000_s", "again_runs_5000_s"):
                taken = seconds_until(browser, f"{url}#/runs", "tbody tr", 100)
                found.setdefault(label, []).append(taken)
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def main() -> None:
    """Print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if not PYTHON.exists() or Path(sys.executable) == PYTHON:
            print("left out: `make board` installs playwright", file=sys.stderr)
            print(json.dumps({"name": "board", "figures": {}, "targets": TARGETS, "held": None}))
            return
        os.execv(PYTHON, [str(PYTHON), __file__, *sys.argv[1:]])
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        base = Path(directory)
        write_run(base / "few" / "big" / "models" / "k10", 10_000)
        write_run(base / "few" / "big" / "models" / "m1", 1_000_000)
        write_runs(base / "many", 5000)
        system = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        figures = {"cores": os.cpu_count(), "load": load} | measured(browser, base, args.times)
        browser.close()
    held = {name: figures[name] <= limit for name, limit in TARGETS.items()}
    for name, value in figures.items():
        limit = f"  at most {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:20} {value:>10}{limit}" + ("" if held.get(name, True) else "  MISSED"))
    report = {"name": "board", "figures": figures, "targets": TARGETS, "held": all(held.values())}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
