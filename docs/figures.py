"""Run each example that has a figure in docs/images from its start, and draw the figure again.

make examples
python docs/figures.py art_e          # one example, also without a figure so far
python docs/figures.py --short        # one step of each; the figures are thrown away
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"


def drawing() -> dict[str, Path]:
    """Return the examples that draw a figure, by name."""
    found = sorted(ROOT.glob("examples/*.py"))
    return {path.stem: path for path in found if '"--figure"' in path.read_text()}


def main(arguments: list[str]) -> None:
    """Run the examples, one after the other; the first that fails ends the program."""
    programs = drawing()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(programs))
    parser.add_argument("--short", action="store_true", help="run one step, keep no figure")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in programs]:
        parser.error(f"{unknown[0]!r} draws no figure; these do: {', '.join(programs)}")
    chosen = given.names or [name for name in programs if (IMAGES / f"{name}.png").exists()]
    with tempfile.TemporaryDirectory() as runs:
        environment = os.environ | {"ART_DIR": runs, "ART_SINKS": "console"}
        if given.short:
            environment["ART_STEPS"] = "1"
        for name in chosen:
            figure = (Path(runs) if given.short else IMAGES) / f"{name}.png"
            command = [sys.executable, str(programs[name]), "--figure", str(figure)]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
