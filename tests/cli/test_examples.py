"""`art examples`: what it lists is there, and a copy is the example itself."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_each_example_has_a_line_its_minutes_and_its_dollars(art_command):
    (listed,) = json.loads(art_command("examples", "--json")).values()
    assert [row["name"] for row in listed] == NAMES
    assert all(20 < len(row["summary"]) <= 100 for row in listed)
    rows = {row["name"]: row for row in listed}
    measured = tomllib.loads((EXAMPLES / "examples.toml").read_text())
    assert measured["minutes"].keys() == rows.keys()
    assert measured["usd_per_hour"] == 0.1
    for name, minutes in measured["minutes"].items():
        assert rows[name]["minutes"] == minutes > 0
        assert rows[name]["usd"] == pytest.approx(minutes / 600)
    lines = art_command("examples", "list").splitlines()
    (line,) = (line for line in lines if line.startswith("first_loop "))
    assert "0.5  $0.001  The loop of the README" in line


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_example(art_command, tmp_path, name):
    printed = art_command("examples", "copy", name, str(tmp_path / "new" / "place"))
    copy = tmp_path / "new" / "place" / f"{name}.py"
    first, *_, empty, after = printed.splitlines()
    assert (first, empty, after) == (str(copy), "", f"next: python {copy}")
    assert copy.read_bytes() == (EXAMPLES / f"{name}.py").read_bytes()


def test_a_copy_has_what_its_program_starts(art_command, art_error, tmp_path):
    written = json.loads(
        art_command("examples", "copy", "typescript_agent", str(tmp_path / "a"), "--json")
    )["files"]
    names = ["typescript_agent.py", "gateway/package.json", "gateway/weather.mts"]
    assert written == [str(tmp_path / "a" / name) for name in names]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (EXAMPLES / name).read_bytes()
    (tmp_path / "b" / "gateway").mkdir(parents=True)
    (tmp_path / "b" / "gateway" / "weather.mts").write_text("mine")
    assert "already there" in art_error("examples", "copy", "typescript_agent", str(tmp_path / "b"))
    assert not (tmp_path / "b" / "typescript_agent.py").exists()


def test_a_copy_goes_to_the_current_directory_and_replaces_nothing(
    art_command, art_error, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    art_command("examples", "copy", "codenames.py")
    (tmp_path / "codenames.py").write_text("mine")
    assert "codenames.py is already there" in art_error("examples", "copy", "codenames")
    assert (tmp_path / "codenames.py").read_text() == "mine"
    (tmp_path / "first_loop.py").symlink_to(tmp_path / "missing.py")
    assert "first_loop.py is already there" in art_error("examples", "copy", "first_loop")
    assert not (tmp_path / "missing.py").exists()


@pytest.mark.parametrize(
    ("name", "answer"),
    [("codename", "Did you mean 'codenames'?"), ("../pyproject", "no example '../pyproject'")],
)
def test_an_unknown_example_is_refused_with_the_nearest_name(art_error, name, answer):
    assert answer in art_error("examples", "copy", name)


def test_names_are_completed():
    from art_core.cli.examples import example_names

    assert example_names() == NAMES
