"""One run that can't be read, or only in part, does not hide the others."""

from __future__ import annotations

import os

import pytest

from art_core.log.reader import LoggedRun, find_runs
from art_core.log.rundir import read_problem
from art_core.reports import board

ROW = {"reward/mean": 0.5, "costs/cum/all": 1.0}


def a_directory(run):
    (run / "history.jsonl").unlink()
    (run / "history.jsonl").mkdir()


def a_loop(run):
    (run / "history.jsonl").unlink()
    (run / "history.jsonl").symlink_to("history.jsonl")


def a_dangling_log(run):
    (run / "history.jsonl").unlink()
    (run / "history.jsonl").symlink_to(run / "gone")


def a_pipe(run):
    (run / "history.jsonl").unlink()
    os.mkfifo(run / "history.jsonl")


def a_dangling_run(run):
    run.rename(run.with_name(".gone"))
    run.symlink_to(run.with_name("nowhere"))


def a_loop_of_runs(run):
    run.rename(run.with_name(".gone"))
    run.symlink_to(run)


UNREADABLE = [
    (a_directory, "Is a directory"),
    (a_loop, "symbolic links"),
    (a_dangling_log, "No such file"),
    (a_pipe, "Is no regular file"),
    (a_dangling_run, "No such file"),
    (a_loop_of_runs, "symbolic links"),
]


@pytest.fixture
def odd(shelf):
    shelf.run("good", ROW)
    return shelf.run("odd", ROW)


@pytest.mark.parametrize(
    ("fault", "reason"), UNREADABLE, ids=lambda case: getattr(case, "__name__", "")
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(odd, art_command, fault, reason):
    fault(odd)
    for command in (("runs",), ("leaderboard",), ("leaderboard", "--status", "all")):
        printed = art_command(*command)
        assert "demo/good" in printed
        (line,) = [line for line in printed.splitlines() if line.startswith("demo/odd: ")]
        assert reason in line
    (line,) = [line for line in art_command("runs").splitlines() if line.startswith("demo/odd ")]
    assert line.split()[4] == "unreadable"


@pytest.mark.parametrize("fault", [fault for fault, _ in UNREADABLE], ids=lambda f: f.__name__)
def test_its_neighbours_are_found_and_its_own_error_names_the_file(
    odd, art_command, art_error, fault
):
    fault(odd)
    assert art_command("show", "good").startswith("demo/good  finished")
    assert art_command("costs", "good")
    if fault is not a_pipe:
        assert "history.jsonl: " in art_error("costs", "demo/odd")


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ('{"status": 5}', "status.json holds the status 5"),
        ('{"status": "a\\nb"}', "holds the status 'a\\nb'"),
        ('{"status": "fin', "is not JSON"),
        ("[]", "holds no JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (None, "status.json: Is a directory"),
    ],
)
def test_a_foreign_status_leaves_the_rows_readable(odd, art_command, stored, reason):
    status = odd / "status.json"
    if stored is None:
        status.unlink()
        status.mkdir()
    else:
        status.write_bytes(stored if isinstance(stored, bytes) else stored.encode())
    printed = art_command("runs")
    (line,) = [line for line in printed.splitlines() if line.startswith("demo/odd ")]
    assert line.split()[1:5] == ["1", "0.500", "1.0000", "unknown"]
    assert reason in printed
    assert "demo/odd" in art_command("leaderboard", "--status", "unknown")
    assert reason in art_command("show", "odd")


def test_a_row_that_breaks_its_reader_is_that_runs_problem(odd, art_command, monkeypatch):
    def newest(history):
        if history.parent == odd:
            raise TypeError("a step of lead")
        return

    monkeypatch.setattr("art_core.log.reader.last_row", newest)
    printed = art_command("runs").splitlines()
    assert printed[-1] == "demo/odd: a step of lead"
    assert printed[-2].split() == ["demo/odd", "-", "-", "-", "unreadable", "-"]


def test_a_log_that_breaks_while_it_is_summarized_is_that_runs_problem(
    odd, art_command, monkeypatch, caplog
):
    read = board.read_summary

    def broken(history, taxonomy, **options):
        if history.parent == odd:
            raise OSError(5, "Input/output error", str(history))
        return read(history, taxonomy, **options)

    monkeypatch.setattr(board, "read_summary", broken)
    assert art_command("leaderboard").splitlines()[-1] == (
        "demo/odd: history.jsonl: Input/output error"
    )
    assert "demo/good" in art_command("leaderboard", "--csv")
    assert "demo/odd: history.jsonl: Input/output error" in caplog.text


def test_a_log_that_is_deleted_between_two_looks_is_its_own_problem(odd, art_command, monkeypatch):
    state = LoggedRun.state

    def deleting(run):
        found = state(run)
        if run.path == odd:
            run.history.unlink()
        return found

    monkeypatch.setattr(LoggedRun, "state", deleting)
    assert (
        art_command("leaderboard").splitlines()[-1].startswith("demo/odd: history.jsonl: No such")
    )


def test_a_directory_that_cannot_be_listed_is_said(tmp_path, caplog):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "models").symlink_to("models")
    assert list(find_runs(tmp_path)) == []
    assert "models can't be listed: Too many levels of symbolic links" in caplog.text


def test_a_name_that_is_not_utf8_is_escaped(shelf, art_command, art_error):
    shelf.run("good", ROW)
    shelf.run(os.fsdecode(b"odd-\xff"), ROW)
    assert "demo/odd-\\xff" in art_command("runs")
    assert "demo/odd-\\xff" in art_command("leaderboard", "--csv")
    for name in ("odd-\\xff", os.fsdecode(b"odd-\xff")):
        assert art_command("show", f"demo/{name}").startswith("demo/odd-\\xff  finished")
    assert "demo/good" in art_error("show", "demo/goof")


def test_an_error_without_a_text_is_named_by_its_type():
    assert read_problem(ValueError()) == "ValueError"
    assert read_problem(OSError(5, "Input/output error")) == "a file: Input/output error"
