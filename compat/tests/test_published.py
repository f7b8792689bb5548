"""Scripts that ART published run unchanged; published/README.md has their origin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parent / "published"
DIGESTS = {
    "temporal-clue.py": "9d4124a8def604e3334a0685fcdca7aa3713284e3c01b54031f73945f9150621",
    "yes-no-maybe-decoupled.py": "e53c0ae9f3a5f8860aa0285b13abe1bd8350705537880e7f735cd42322020fef",
    "yes-no-maybe.py": "a8391ef6c286db5119985edf3284c999e7b267919c89da336c0c5b1919df71ef",
}
pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


def test_the_scripts_are_unchanged_and_their_origin_is_stated():
    origins = (PUBLISHED / "README.md").read_text()
    for file in PUBLISHED.glob("*.py"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == DIGESTS[file.name]
        lines = len(file.read_text().splitlines())
        assert f"| `{file.name}` | " in origins
        assert f" | {lines} |" in origins


@pytest.mark.slow
def test_the_script_of_142_lines_trains_until_it_is_stopped(script):
    published = script("yes-no-maybe-decoupled.py")
    assert len(published.file.read_text().splitlines()) == 142

    def rows():
        return published.rows("yes-no-maybe", "001-decoupled", "train")

    output = published.run(until=lambda: len(rows()) >= 2)
    assert "Starting training from step 0" in output
    assert "Initial average reward at step 0: 0." in output
    first, second, *_ = rows()
    assert (first.step, second.step) == (1, 2)
    for row in (first, second):
        assert row.metrics["data/step_num_trajectories"] == 36 * 32
        assert row.metrics["data/step_num_groups_trainable"] > 0
        assert row.metrics["loss/learning_rate"] == 1e-4
        assert row.metrics["loss/grad_norm"] > 0
    checkpoints = published.place / ".art/yes-no-maybe/models/001-decoupled/checkpoints"
    assert {"0001", "0002"} <= {path.name for path in checkpoints.iterdir()}


@pytest.mark.slow
def test_the_script_that_reads_its_size_from_variables_runs_to_its_end(script, taught_directory):
    published = script("yes-no-maybe.py")
    published.run(BASE_MODEL=str(taught_directory), NUM_STEPS="1", MODEL_NAME="one")
    (row,) = published.rows("yes-no-maybe", "one", "train")
    assert row.metrics["data/step_num_trajectories"] == 48 * 32
    assert row.metrics["loss/grad_norm"] > 0


def test_the_script_that_trains_and_logs_in_two_calls_writes_rows_of_both_splits(script):
    published = script("temporal-clue.py")
    published.write_puzzles(136)

    def rows(split):
        return published.rows("temporal-clue", "001", split)

    output = published.run(until=lambda: len(rows("train")) >= 2)
    assert "BACKUP_BUCKET not found" in output
    assert [row.step for row in rows("train")[:2]] == [1, 2]
    assert rows("train")[0].metrics["data/step_num_trajectories"] == 200
    assert [row.step for row in rows("val")[:2]] == [0, 1]
    assert rows("val")[0].metrics["val/acc"] == rows("val")[0].metrics["val/reward"]


def test_a_script_that_keeps_checkpoints_in_s3_is_refused_with_the_remedy(script):
    published = script("temporal-clue.py")
    published.write_puzzles(136)
    with pytest.raises(AssertionError, match=r"_experimental_pull_from_s3: checkpoints are plain"):
        published.run(BACKUP_BUCKET="mine")
