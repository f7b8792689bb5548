"""Run each example that has a figure in docs/images from its start, and draw the figure again.

make examples
python docs/figures.py art_e    # one example, also without a figure so far
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"


def main(names: list[str]) -> None:
    """Run the examples, one after the other; the first that fails ends the program."""
    programs = {path.stem: path for path in sorted(ROOT.glob("examples/*.py"))}
    chosen = names or [name for name in programs if (IMAGES / f"{name}.png").exists()]
    with tempfile.TemporaryDirectory() as runs:
        for name in chosen:
            figure = str(IMAGES / f"{name}.png")
            command = [sys.executable, str(programs[name]), "--figure", figure]
            environment = os.environ | {"ART_DIR": runs, "ART_SINKS": "console"}
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
