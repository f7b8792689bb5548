from __future__ import annotations

import math
import time

import attrs
import pytest

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.sinks import delivery, sync
from art_core.sinks.cursor import load_cursor
from art_core.sinks.sync import Progress, keep_options
from waiting import until


@attrs.define
class Shelf:
    """A plugin with a sink `shelf` that keeps rows, and `now`, which takes new rows only."""

    seqs: list = attrs.field(factory=list)
    runs: list = attrs.field(factory=list)
    fault: object = None

    @art.hookimpl
    def art_sinks(self):
        make = {"create": lambda: self, "summary": ""}
        return [
            art.SinkSpec(name="shelf", **make),
            art.SinkSpec(name="now", backlog=False, **make),
        ]

    def open(self, run):
        self.runs.append(run)

    def write(self, rows):
        if self.fault:
            self.fault()
        self.seqs += [row.seq for row in rows]

    def close(self, run):
        self.runs.append(run)


ROWS = [{"reward/mean": 0.5}] * 3


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.01)


def test_a_sink_gets_what_it_has_not_got_yet(shelf, art_command):
    sink = Shelf()
    directory = shelf.run("a", *ROWS)
    (directory / "model.json").write_text('{"name": "a", "base_model": "b", "config": {"x": 1}}')
    printed = art_command("sync", "a", "--sink", "shelf", plugins={"p": sink})
    assert printed == "3 rows of demo/a to deliver to 'shelf'\n'shelf' has all rows\n"
    assert sink.seqs == [1, 2, 3]
    opened, closed = sink.runs
    assert (opened.project, opened.name, opened.base_model) == ("demo", "a", "b")
    assert (opened.config, opened.attempt, closed.status) == ({"x": 1}, 1, "finished")
    assert load_cursor(directory / "sinks" / "shelf.cursor").seq == 3
    again = art_command("sync", "a", "--sink", "shelf", plugins={"p": sink})
    assert again.startswith("0 rows of demo/a")
    assert sink.seqs == [1, 2, 3]


@pytest.mark.parametrize("text", [None, "{torn"])
def test_a_run_that_does_not_describe_itself_is_named_by_its_directory(shelf, art_command, text):
    sink = Shelf()
    directory = shelf.run("a")
    if text:
        (directory / "model.json").write_text(text)
    art_command("sync", "a", "--sink", "shelf", plugins={"p": sink})
    assert (sink.runs[0].project, sink.runs[0].name, sink.runs[0].attempt) == ("demo", "a", 1)


def test_what_is_missing_at_the_end_is_an_error(shelf, art_command, art_error, monkeypatch):
    def down():
        raise OSError("no route")

    def close(follower, *given):
        until(lambda: follower.error)
        real(follower, *given)

    real = delivery.Follower.close
    monkeypatch.setattr(delivery.Follower, "close", close)
    shelf.run("a", *ROWS)
    plugins = {"p": Shelf(fault=down)}
    error = art_error("sync", "a", "--sink", "shelf", "--timeout", "0.2", plugins=plugins)
    assert "sink 'shelf': 3 rows not delivered (OSError: no route). They stay in the log" in error


@pytest.mark.parametrize(("status", "told"), [("failed", "ValueError: no"), ("finished", None)])
def test_a_sink_is_told_the_reason_of_a_failed_run_later_too(tmp_path, status, told):
    model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
    model.run.record("train", 1)
    model.run.close(status, error=ValueError("no"))
    info = sync.run_info(LoggedRun(model.run_dir))
    assert (info.status, info.reason) == (status, told)


def test_progress_is_told_while_it_goes_on(shelf, art_command, monkeypatch):
    monkeypatch.setattr(sync, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(delivery, "BREAK_AFTER", math.inf)  # it may fail often before it is seen
    told = []

    def progress(missing, error):
        told.append(error)
        return Progress(missing, error)

    def busy():
        if not any(told):
            raise OSError("busy")

    monkeypatch.setattr(sync, "Progress", progress)

    shelf.run("a", *ROWS)
    printed = art_command("sync", "a", "--sink", "shelf", plugins={"p": Shelf(fault=busy)})
    assert "3 rows of demo/a to deliver to 'shelf' (OSError: busy)\n" in printed
    assert printed.endswith("'shelf' has all rows\n")


def test_progress_that_is_the_same_is_told_once(shelf, art_command, monkeypatch):
    monkeypatch.setattr(sync, "LOOK_SECONDS", 0.0)
    shelf.run("a", *ROWS)
    sink = Shelf(fault=lambda: time.sleep(0.05))
    printed = art_command("sync", "a", "--sink", "shelf", plugins={"p": sink})
    lines = printed.splitlines()
    assert lines[0] == "3 rows of demo/a to deliver to 'shelf'"
    assert len(lines) == len(set(lines)) <= 3


def test_a_cursor_that_cannot_be_kept_is_said_and_costs_repeats(shelf, art_command, caplog):
    directory = shelf.run("a", *ROWS)
    (directory / "sinks").write_text("a file is in the way")
    sink = Shelf()
    assert "'shelf' has all rows" in art_command(
        "sync", "a", "--sink", "shelf", plugins={"p": sink}
    )
    assert "FileExistsError" in caplog.text
    assert sink.seqs == [1, 2, 3]


def test_a_sink_that_a_trainer_serves_right_now_is_refused(shelf, art_command, art_error):
    sink = Shelf()
    plugins = art.Plugins()
    plugins.register(sink, "p")
    model = art.Model(name="m", project="demo", plugins=plugins, sinks=["shelf"])
    model.run.record("train", 1, metrics={"loss/train": 1.0})
    until(lambda: sink.seqs == [1])
    error = art_error("sync", "m", "--sink", "shelf", plugins={"p": sink})
    assert "'shelf' is already being served by another process" in error
    model.run.close()
    assert "0 rows" in art_command("sync", "m", "--sink", "shelf", plugins={"p": sink})
    assert sink.seqs == [1]


def test_a_sink_without_backlog_and_a_wait_of_nothing_are_refused(shelf, art_error):
    shelf.run("a", *ROWS)
    plugins = {"p": Shelf()}
    error = art_error("sync", "a", "--sink", "now", plugins=plugins)
    assert "takes only the rows of a run that is being trained" in error
    error = art_error("sync", "a", "--sink", "shelf", "--timeout", "0", plugins=plugins)
    assert "--timeout must be a number of seconds" in error


def test_a_sink_that_lacks_its_settings_is_told_at_once(shelf, art_error):
    class Lacking:
        @art.hookimpl
        def art_sinks(self):
            return [art.SinkSpec(name="lacking", create=self.create, summary="")]

        def create(self):
            raise art.ConfigError("the sink 'lacking' has no server", "Set LACKING_URL.")

    shelf.run("a", *ROWS)
    error = art_error("sync", "a", "--sink", "lacking", plugins={"p": Lacking()})
    assert error == "art: the sink 'lacking' has no server. Set LACKING_URL.\n"


def sunk(base, **options):
    """Make a run whose code made the sink `shelf` with options, and that delivered nothing."""
    model = art.Model(name="a", project="demo", base_path=base, sinks=[])
    spec = art.SinkSpec(name="shelf", create=Shelf, summary="", **options)
    model.run.record("train", 1, metrics={"reward/mean": 0.5})
    model.run.close()
    keep_options(model.run_dir, [spec], dict)


def test_options_of_the_runs_code_reach_the_sink(tmp_path, art_command):
    made = []

    @attrs.define
    class Plugin:
        @art.hookimpl
        def art_sinks(self):
            return [self.spec()]

        def spec(self, shelf="left"):
            def create():
                made.append(shelf)
                return Shelf()

            return art.SinkSpec(name="shelf", create=create, summary="", factory=self.spec)

    sunk(tmp_path, options={"shelf": "right"})
    arguments = ("sync", "a", "--sink", "shelf", "--dir", str(tmp_path))
    art_command(*arguments, plugins={"p": Plugin()})
    assert made == ["right"]
    art_command(*arguments, "--as-installed", plugins={"p": Plugin()})
    assert made == ["right", "left"]


def test_unknown_options_of_the_runs_code_are_refused_and_nothing_is_sent(tmp_path, art_error):
    sunk(tmp_path)
    sink = Shelf()
    arguments = ("sync", "a", "--sink", "shelf", "--dir", str(tmp_path))
    error = art_error(*arguments, plugins={"p": sink})
    assert "with options that the run does not keep" in error
    assert "--as-installed" in error
    assert sink.seqs == []


def test_a_sink_that_code_named_otherwise_is_found_by_that_name(tmp_path, art_command, art_error):
    sink = Shelf()
    model = art.Model(name="a", project="demo", base_path=tmp_path, sinks=[])
    model.run.record("train", 1, metrics={"reward/mean": 0.5})
    model.run.close()
    spec = art.SinkSpec(name="shelf", create=Shelf, summary="", options={}).named("shelf-2")
    keep_options(model.run_dir, [spec], dict)
    arguments = ("sync", "a", "--dir", str(tmp_path), "--sink")
    assert "'shelf-2' has all rows" in art_command(*arguments, "shelf-2", plugins={"p": sink})
    assert (sink.seqs, sink.runs[0].sink) == ([1], "shelf-2")
    assert (model.run_dir / "sinks" / "shelf-2.cursor").exists()
    assert "no sink 'shelf-3'" in art_error(*arguments, "shelf-3", plugins={"p": sink})
