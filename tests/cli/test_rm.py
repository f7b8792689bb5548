from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path

import pytest

import art_core as art
from art_core.cli import deletion
from art_core.cli.main import main

ROW = {"reward/mean": 0.5}


@pytest.fixture
def run(shelf):
    """A run with two checkpoints of 1,000 bytes."""
    shelf.run("other", ROW)
    directory = shelf.run("a", ROW, status=None)
    (directory / "history.jsonl").write_bytes(b"")
    for step in (1, 2):
        (directory / "checkpoints" / f"{step:04d}").mkdir(parents=True)
        (directory / "checkpoints" / f"{step:04d}" / "weights").write_bytes(b"x" * 1000)
    return directory


@pytest.fixture
def terminal(monkeypatch):
    """A terminal where the user types an answer."""

    def types(answer: str):
        stdin = io.StringIO(answer)
        stdin.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", stdin)

    return types


def test_what_was_freed_is_printed(run, art_command):
    assert art_command("rm", "a", "--yes") == "deleted demo/a (2 kB, 2 checkpoints)\n"
    assert not run.exists()
    assert (run.parent / "other" / "history.jsonl").exists()


def test_several_runs_are_deleted_each_once(run, art_command):
    printed = art_command("rm", "a", str(run), "other", "--yes")
    assert [line.split()[1] for line in printed.splitlines()] == ["demo/a", "demo/other"]
    assert list(run.parent.iterdir()) == []


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_it_asks_first(run, terminal, capsys, answer):
    terminal(answer)
    assert main(["rm", "a"], art.Plugins()) == 0
    out, err = capsys.readouterr()
    assert out == "nothing was deleted\n"
    assert err == "delete demo/a (2 kB, 2 checkpoints)? [y/N] "
    assert run.exists()


def test_yes_deletes(run, terminal, art_command):
    terminal("Y\n")
    art_command("rm", "a")
    assert not run.exists()


def test_without_a_terminal_it_needs_yes(run, monkeypatch, art_error):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "Give --yes where no terminal can ask" in art_error("rm", "a")
    assert run.exists()


@pytest.mark.parametrize("name", ["history.jsonl", "sinks/wandb.lock"])
def test_a_run_that_is_in_use_is_refused(run, art_error, name):
    (run / name).parent.mkdir(exist_ok=True)
    with (run / name).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"demo/a is in use: a process holds {Path(name).name}" in art_error(
            "rm", "a", "--yes"
        )
    assert (run / "checkpoints" / "0001" / "weights").exists()


def test_links_inside_are_not_followed(run, art_command, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    (run / "link").symlink_to(kept)
    (run / "checkpoints" / "latest").symlink_to(kept)
    art_command("rm", "a", "--yes")
    assert (kept / "file").read_text() == "kept"


def test_a_file_with_another_name_elsewhere_frees_nothing(run, tmp_path):
    os.link(run / "checkpoints" / "0001" / "weights", tmp_path / "weights")
    os.link(run / "checkpoints" / "0002" / "weights", run / "again")
    assert deletion.holdings(run) == deletion.Holdings(bytes=1000, checkpoints=2)


def test_a_link_to_a_run_is_refused(run, art_error):
    link = run.with_name("link")
    link.symlink_to(run)
    for name in ("link", str(link), f"{link}/"):
        assert f"is a symbolic link to {run}" in art_error("rm", name, "--yes")
    assert run.exists()


def test_a_project_that_lies_elsewhere_is_refused_by_name(run, art_command, art_error, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    run.parent.parent.rename(elsewhere)
    (run.parent.parent).symlink_to(elsewhere)
    assert f"demo/a lies outside of {run.parent.parent.parent}, in " in art_error(
        "rm", "a", "--yes"
    )
    art_command("rm", str(elsewhere / "models" / "a"), "--yes")
    assert not run.exists()


def test_a_directory_of_another_layout_is_refused(run, art_error, tmp_path):
    (tmp_path / "history.jsonl").touch()
    assert f"{tmp_path} is no run's directory" in art_error("rm", str(tmp_path), "--yes")
    assert (tmp_path / "history.jsonl").exists()


def test_an_interrupted_deletion_can_be_finished(run, art_command, art_error, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(deletion.shutil, "rmtree", denied)
        assert art_error("rm", "a", "--yes").endswith("checkpoints: Permission denied\n")
    assert "demo/a" in art_command("runs")
    art_command("rm", "a", "--yes")
    assert not run.exists()


@pytest.mark.parametrize("kind", ["directory", "dangling"])
def test_a_run_whose_log_is_none_can_be_deleted(run, art_command, kind):
    (run / "history.jsonl").unlink()
    if kind == "directory":
        (run / "history.jsonl").mkdir()
    else:
        (run / "history.jsonl").symlink_to(run / "gone")
    art_command("rm", "a", "--yes")
    assert not run.exists()


def test_a_run_that_is_not_there_is_named(run, art_error):
    assert "no run 'b'; in " in art_error("rm", "a", "b", "--yes")
    assert run.exists()
