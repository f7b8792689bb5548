from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from art_core.log.rows import read_rows

pytest.importorskip("art", reason="needs art-compat: pip install --editable ./compat")
sys.path.append(str(Path(__file__).parent))
PUBLISHED = Path(__file__).parent / "published"
PUZZLE = "Who did it? Answer with a letter and a name."


@pytest.fixture(scope="session")
def taught_directory(tmp_path_factory) -> Path:
    """A tiny model that answers the prompts of the published scripts, in a few different ways."""
    from taught import save_taught_model

    examples = [
        (f"{prefix} with {words}", answer)
        for prefix, words in (("respond", "'yes', 'no', 'maybe'"), ("just respond", "yes or no"))
        for answer in ("yes", "no", "maybe")
    ]
    examples += [(PUZZLE, "A. Ann"), (PUZZLE, "A. Bob")]
    return save_taught_model(tmp_path_factory.mktemp("models") / "taught", examples)


class Script:
    """A published script in a directory of its own, in which a local model answers to the name that
    the script gives.
    """

    def __init__(self, place: Path, name: str, model: Path) -> None:
        self.place = place
        (place / "examples").mkdir(parents=True)
        self.file = place / "examples" / name
        self.file.write_bytes((PUBLISHED / name).read_bytes())
        (place / "Qwen").mkdir()
        (place / "Qwen" / "Qwen2.5-7B-Instruct").symlink_to(model)

    def write_puzzles(self, count: int) -> None:
        file = self.place / "data" / "temporal-clue" / "puzzles.json"
        file.parent.mkdir(parents=True)
        one = {"num_clues": 1, "prompt": PUZZLE, "solution": {"A": "Ann"}}
        file.write_text(json.dumps([one] * count))

    def rows(self, project: str, name: str, split: str) -> list:
        history = self.place / ".art" / project / "models" / name / "history.jsonl"
        read = read_rows(history) if history.exists() else ()
        return [row for row, _ in read if row.split == split]

    def run(self, *, until=None, **env: str) -> str:
        """Run the script to its end, or until a condition holds; return its output."""
        given = {**os.environ, "ART_PROGRESS": "lines", "OMP_NUM_THREADS": "1", **env}
        given.pop("ART_DIR", None)
        command = [sys.executable, str(self.file)]
        log = self.place / "output.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.place, env=given, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None and not (until and until()):
                    time.sleep(0.2)
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(60)
                else:
                    assert process.returncode == 0, log.read_text()
            finally:
                process.kill()
        return log.read_text()


@pytest.fixture
def script(tmp_path, taught_directory):
    def make(name: str) -> Script:
        return Script(tmp_path / "run", name, taught_directory)

    return make
