"""Take the pictures of docs/board.md: of a run that is trained for them, in a real Chromium.

make pictures
python docs/board.py --dir .art --run agent-001    # of runs that are there
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import art_core as art

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
EXAMPLE = ROOT / "examples" / "yes_no_maybe.py"
QUESTIONS = ("Is grass green?", "Can birds fly?", "Is the sun cold?", "Do dogs meow?")
RUNS = (("smol-001", 7), ("smol-001", 12), ("smol-002", 8))
TABS = {
    "Curves": "curves",
    "Costs": "costs",
    "Trajectories": "trajectories",
    "Evaluations": "evaluations",
    "Live": "live",
    "About": "about",
}


def train(base: Path) -> None:
    """Train the yes / no / maybe task of the quickstart twice, one run in two attempts."""
    environment = os.environ | {"ART_DIR": str(base), "ART_SINKS": "console"}
    for name, steps in RUNS:
        command = [sys.executable, EXAMPLE, "--name", name, "--steps", str(steps)]
        subprocess.run(command, env=environment, check=True)
    asyncio.run(evaluate(base))


async def evaluate(base: Path) -> None:
    """Evaluate some steps of the first run on other questions."""
    sys.path.insert(0, str(EXAMPLE.parent))
    from yes_no_maybe import MODEL, rollout

    async def ask(model: Any, scenario: dict[str, str]) -> art.Trajectory:
        return await rollout(model, scenario["id"])

    name, project = RUNS[0][0], "yes-no-maybe"
    scenarios = [{"id": question} for question in QUESTIONS]
    place = art.backend("local", lora_rank=8, lora_alpha=16, gpu_cost_per_hour_usd=0.10)
    async with art.TrainableModel(
        name=name, project=project, base_model=MODEL, base_path=base, sinks=[]
    ) as model:
        await model.register(place)
        for step in (0, 10, 12):  # kept, by default
            await art.evaluate(model, scenarios, ask, step=step, repeats=8)
        await place.close()


def take(page: Any, name: str) -> None:
    """Save a picture of what the window shows."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / f"board-{name}.png")


def take_all(browser: Any, url: str, run: str) -> None:
    """Save a picture of each page, and one in dark colours."""
    page = browser.new_page(viewport={"width": 1160, "height": 720})
    page.goto(url)
    page.wait_for_selector("tbody tr")
    take(page, "runs")
    page.goto(f"{url}#/leaderboard")
    page.wait_for_selector("h1 >> text=Leaderboard")
    take(page, "leaderboard")
    page.goto(f"{url}#/runs")
    page.get_by_role("link", name=run).first.click()
    for tab, name in TABS.items():
        page.get_by_role("link", name=tab, exact=True).click()
        page.wait_for_selector(f"a[aria-current=page] >> text={tab}")
        page.wait_for_timeout(800)
        take(page, name)
    page.emulate_media(color_scheme="dark")
    page.get_by_role("link", name="Curves", exact=True).click()
    page.wait_for_selector("figure canvas")
    take(page, "dark")


def main() -> None:
    """Train a run unless there is one, serve it, take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, help="a directory of runs; without it one is trained")
    parser.add_argument("--run", default="smol-001", help="a part of the run's name")
    parser.add_argument("--train", type=Path, metavar="DIR", help="train into this directory only")
    given = parser.parse_args()
    if given.train:
        train(given.train)
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        base = given.dir or Path(made) / ".art"
        base.mkdir(exist_ok=True)
        if not given.dir:
            python = ROOT / ".venv" / "bin" / "python"
            subprocess.run([python, __file__, "--train", base], check=True)
        code = "import sys; from art_core.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-u", "-c", code, "board", base.name, "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=base.resolve().parent
        ) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            system = next(filter(None, map(shutil.which, NAMES)), None)
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM") or system, args=["--no-sandbox"]
            )
            take_all(browser, url, given.run)
            browser.close()
            server.terminate()


if __name__ == "__main__":
    main()
