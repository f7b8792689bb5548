from __future__ import annotations

import builtins
import itertools
import os
import subprocess
import sys

import argcomplete
import pytest

import art_core as art
from art_core.cli import completion
from art_core.cli.main import main, parser


@pytest.fixture
def candidates(shelf):
    """What a shell is offered after `art ...`, the last word unfinished."""
    shelf.run("agent-1", {"reward/mean": 0.5})
    shelf.run("agent-2", {"reward/mean": 0.5})

    def ask(line: str) -> list[str]:
        finder = argcomplete.CompletionFinder(parser(art.Plugins()), always_complete_options=True)
        words = line.removeprefix("art ")
        before = words.rpartition(" ")[0]
        states = iter(itertools.count())
        found = iter(lambda: finder.rl_complete(words, next(states)), None)
        return [text.removeprefix(before).strip() for text in found]

    return ask


def test_commands_and_actions_are_completed(candidates):
    assert candidates("art lead") == ["leaderboard"]
    assert candidates("art models p") == ["pull"]
    assert set(candidates("art co")) == {"costs", "compare", "completion"}


def test_options_are_completed(candidates):
    assert candidates("art costs a --per") == ["--per-step"]
    assert candidates("art runs --js") == ["--json"]


@pytest.mark.parametrize("command", ["show", "costs", "rm", "plot", "sync", "export", "reprice"])
def test_runs_are_completed(candidates, command):
    assert candidates(f"art {command} agent") == ["agent-1", "agent-2"]
    assert candidates(f"art {command} demo/agent-2") == ["demo/agent-2"]


def test_runs_of_another_directory_are_completed(candidates, tmp_path):
    (tmp_path / "else" / "p" / "models" / "far").mkdir(parents=True)
    (tmp_path / "else" / "p" / "models" / "far" / "history.jsonl").touch()
    assert candidates(f"art show --dir {tmp_path}/else f") == ["far"]


def test_names_of_plugins_and_metrics_are_completed(candidates):
    assert candidates("art backends loc") == ["local"]
    assert candidates("art models --backend loc") == ["local"]
    assert candidates("art sync agent-1 --sink cons") == ["console"]
    assert candidates("art plot agent-1 reward/me") == ["reward/mean"]
    assert "costs/all" in candidates("art plot agent-1 reward/mean --x costs/a")


@pytest.mark.parametrize(
    ("shell", "code"),
    [("bash", "complete "), ("zsh", "compdef"), ("fish", "complete --command art")],
)
def test_each_shell_has_its_code(art_command, shell, code):
    assert code in art_command("completion", shell)


def test_without_the_library_the_error_says_what_to_install(art_error, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "argcomplete":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert "pip install 'art-core[completion]'" in art_error("completion", "bash")


def test_a_shell_that_asks_gets_its_candidates(shelf):
    line = "art leader"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    # The shell reads them from descriptor 8.
    command = f"exec {sys.executable} -m art_core 8>&1 9>/dev/null"
    done = subprocess.run(
        ["sh", "-c", command], env=os.environ | asked, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == b"leaderboard "


def test_what_asks_ends_there(monkeypatch):
    class Library:
        def autocomplete(self, top, exit_method):
            exit_method(0)

    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setattr(completion, "_argcomplete", Library)
    with pytest.raises(SystemExit):
        main(["runs"], art.Plugins())


def test_nothing_is_imported_where_no_shell_asks(monkeypatch):
    monkeypatch.setattr(completion, "_argcomplete", None)
    assert main([], art.Plugins()) == 0
