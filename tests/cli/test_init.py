"""`art init`: the agent that it writes is tested, formatted, and the one that was asked for."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import art_core as art
from art_core.cli.init import KINDS
from art_core.cli.main import main
from art_core.cli.project import read_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def init(tmp_path, capsys, monkeypatch):
    """Runs `art init tmp_path/NAME ...`; returns status, standard output and error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(name, *options):
        status = main(["init", str(tmp_path / name), *options], art.Plugins())
        return status, *capsys.readouterr()

    return run


def ran(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_that_it_writes_pass(init, tmp_path, kind):
    assert init("my_agent", f"--{kind}")[0] == 0
    out = ran(tmp_path / "my_agent", "pytest", "-q", "-p", "no:cacheprovider")
    assert " passed" in out
    assert "skipped" not in out


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_formatted_and_can_be_trained(init, tmp_path, kind):
    status, out, _ = init("my_agent", f"--{kind}")
    folder = tmp_path / "my_agent"
    assert status == 0
    assert out.splitlines()[-1] == f"next: art train {folder}"
    assert sorted(map(str, folder.iterdir())) == out.splitlines()[:-2]
    ran(folder, "ruff", "check", "--isolated", "--select", "E,F,I,B,UP", "--no-cache", ".")
    ran(folder, "ruff", "format", "--isolated", "--check", "--no-cache", ".")
    project = read_project(folder)
    assert project["run"]["name"] == "my_agent"
    assert project["model"]["base"] == KINDS[kind].base_model
    assert project.backend_options()["lora_rank"] == 8
    assert (project["run"]["judge"] is not None) == (kind == "judge")
    assert "$" not in (folder / "README.md").read_text()


def test_base_model_and_backend_are_those_that_were_asked_for(init, tmp_path):
    init("one", "--base-model", "Qwen/Qwen3-1.7B", "--backend", "tinker")
    written = tomllib.loads((tmp_path / "one" / "art.toml").read_text())
    assert written["model"]["base"] == "Qwen/Qwen3-1.7B"
    assert written["backend"]["name"] == "tinker"


@pytest.mark.parametrize("content", ["a directory", "a file"])
def test_what_is_there_is_not_overwritten(init, tmp_path, content):
    here = tmp_path / "demo"
    if content == "a file":
        here.write_text("mine")
    else:
        here.mkdir()
        (here / "mine.txt").write_text("mine")
    status, out, err = init("demo")
    assert (status, out) == (2, "")
    assert err == f"art: {here} is there and not empty. Choose another directory.\n"


def test_an_empty_directory_is_filled(init, tmp_path):
    (tmp_path / "demo").mkdir()
    assert init("demo")[0] == 0
    assert (tmp_path / "demo" / "art.toml").is_file()


@pytest.mark.parametrize("name", ["ä", "a b", "x" * 65, "-x".replace("-", "_", 1)])
def test_a_name_that_cannot_be_a_runs_is_refused(init, tmp_path, name):
    status, _, err = init(name)
    assert status == 2
    assert "can't be the name of a run. Use letters" in err
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("said", "kind"), [("\n", "chat"), ("9\nx\n2\n", "tools"), ("environment\n", "environment")]
)
def test_a_terminal_is_asked_for_the_kind(init, tmp_path, monkeypatch, said, kind):
    asked = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(said))
    monkeypatch.setattr(sys, "stderr", asked)
    assert init("demo")[0] == 0
    assert KINDS[kind].about in (tmp_path / "demo" / "README.md").read_text()
    assert asked.getvalue().count("which? [1 to 4, default 1]") == said.count("\n")
    assert all(each.about in asked.getvalue() for each in KINDS.values())
