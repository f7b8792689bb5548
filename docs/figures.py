"""Run each example that has a figure in docs/images from its start, and draw the figure again.

make examples
python docs/figures.py art_e          # one example, also without a figure so far
python docs/figures.py --short        # one step of each; the figures are thrown away

Prints what each run learned, its minutes and dollars; fails if an example has no run that learned.
An example whose packages are not here is left out, with the command that installs them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
VERIFIERS = ROOT / ".nox" / "environments" / "tmp" / "verifiers" / "bin" / "python"
BESIDE = (sys.executable, str(ROOT / "tests" / "shared" / "beside_server.py"))
JUDGE = ROOT / "docs" / "judge.py"
APART = {
    "auto_rl": (JUDGE, (sys.executable, str(JUDGE), sys.executable), ""),
    "typescript_agent": (ROOT / "examples/gateway/node_modules/.bin/tsx", (sys.executable,),
        "npm install --prefix examples/gateway"),
    "verifiers_words": (VERIFIERS, (*BESIDE, str(VERIFIERS)), "make environments"),
}  # fmt: skip
"""Examples that need more than `make` installs: a file of it, by what they run, what makes it."""

sys.path.insert(0, str(Path(__file__).parent))
from learning import described, learned  # noqa: E402

from art_core.log.reader import find_runs  # noqa: E402


def drawing() -> dict[str, Path]:
    """Return the examples that draw a figure, by name."""
    found = sorted(ROOT.glob("examples/*.py"))
    return {path.stem: path for path in found if '"--figure"' in path.read_text()}


def drawn(name: str, program: Path, *, short: bool) -> bool:
    """Run an example and return whether a run of it learned; with `short` one step, for which it
    is enough that it ends.
    """
    needed, runner, remedy = APART.get(name, (program, (sys.executable,), ""))
    if not needed.exists():
        print(f"{name}: left out, {needed.relative_to(ROOT)} is missing: {remedy}", flush=True)
        return True
    with tempfile.TemporaryDirectory() as runs:
        environment = os.environ | {"ART_DIR": runs, "ART_SINKS": "console"}
        if short:
            environment["ART_STEPS"] = "1"
        figure = (Path(runs) if short else IMAGES) / f"{name}.png"
        start = time.monotonic()
        command = [*runner, str(program), "--figure", str(figure)]
        subprocess.run(command, env=environment, check=True)
        minutes = (time.monotonic() - start) / 60
        found = {run: learned(run) for run in find_runs(Path(runs))}
        for run, learning in found.items():
            print(f"{name}, {minutes:.1f} minutes: {described(run, learning)}", flush=True)
        return short or any(each is not None and each.low > 0 for each in found.values())


def main(arguments: list[str]) -> int:
    """Run the examples, one after the other; the first that fails ends the program."""
    programs = drawing()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(programs))
    parser.add_argument("--short", action="store_true", help="run one step, keep no figure")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in programs]:
        parser.error(f"{unknown[0]!r} draws no figure; these do: {', '.join(programs)}")
    chosen = given.names or [name for name in programs if (IMAGES / f"{name}.png").exists()]
    without = [name for name in chosen if not drawn(name, programs[name], short=given.short)]
    if without:
        print(f"no rise of the reward beyond the interval: {', '.join(without)}", file=sys.stderr)
    return bool(without)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
