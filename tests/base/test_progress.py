"""The form of progress: bars where a person watches, whole lines in a log."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from tqdm import tqdm

from art_core.base.errors import ConfigError
from art_core.base.progress import (
    child_settings,
    draws_bars,
    final_lines,
    interval_s,
    line_progress,
    print_line,
    progress_bar,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.fixture
def log(capsys):
    """Return what was written to standard error, not a terminal, since the last call."""
    return lambda: capsys.readouterr().err


def walked(steps=50, **options):
    with progress_bar(desc="walk", total=steps, **options) as bar:
        for _ in range(steps):
            bar.update()


def test_a_log_has_a_line_when_it_begins_and_when_it_ends(log):
    walked()
    printed = log()
    assert "\r" not in printed
    first, last = printed.splitlines()
    assert first.startswith("walk:   0% 0/50 [")
    assert last.startswith("walk: 100% 50/50 [")


def test_a_bar_that_leaves_nothing_in_a_terminal_leaves_its_last_line_in_a_log(log):
    walked(leave=False, dynamic_ncols=True)
    assert log().splitlines()[-1].startswith("walk: 100% 50/50")


class ClosedPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_left_does_not_end_the_work_or_block_the_next_bar(monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    with progress_bar(desc="walk", total=2) as bar:
        bar.refresh()
        bar.update()
    print_line("after the walk")
    free = threading.Thread(target=walked, args=(1,))
    free.start()
    free.join(10)
    assert not free.is_alive()


def test_lines_come_at_intervals(log, monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    walked(3)
    assert [line[6:14] for line in log().splitlines()] == [
        "  0% 0/3", " 33% 1/3", " 67% 2/3", "100% 3/3",
    ]  # fmt: skip


def test_a_new_description_is_a_line_and_what_it_repeats_is_not(log):
    with progress_bar(desc="install", total=2) as bar:
        bar.set_description("install: torch\r")
        bar.set_description("install: torch\r")
        bar.set_postfix_str("a\nb")
    printed = log()
    assert [line.partition(":  ")[0] for line in printed.splitlines()] == [
        "install", "install: torch ", "install: torch ",
    ]  # fmt: skip
    assert "\r" not in printed
    assert ", a b]" in printed


def test_bars_at_once_and_lines_beside_them_stay_whole(log):
    def walk(name):
        for _ in range(20):
            with progress_bar(desc=name, total=2) as bar:
                print_line(f"{name} beside")
                bar.update(2)

    threads = [threading.Thread(target=walk, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log().splitlines()
    assert len(lines) == 2 * 20 * 3
    for name in ("left", "right"):
        mine = [line for line in lines if line.startswith(name)]
        assert mine[::3] == [line for line in mine if ": " in line and "0/2" in line]
        assert mine[1::3] == [f"{name} beside"] * 20


def test_what_is_closed_twice_or_never_moved_prints_no_second_line(log):
    bar = progress_bar(desc="walk", total=3)
    bar.close()
    bar.close()
    assert len(log().splitlines()) == 1


def test_a_bar_in_a_terminal_is_drawn_over_itself(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    walked()
    assert screen.getvalue().count("\rwalk") >= 2
    assert line_progress() is None


def test_a_notebook_has_bars_although_it_is_no_terminal(monkeypatch, log):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert draws_bars()
    assert interval_s() == 0.1


def test_the_environment_chooses_the_form(monkeypatch, log):
    monkeypatch.setenv("ART_PROGRESS", "bars")
    walked()
    assert "\rwalk" in log()
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("ART_PROGRESS", "lines")
    walked()
    assert "\r" not in sys.stderr.getvalue()
    monkeypatch.setenv("ART_PROGRESS", "none")
    with pytest.raises(ConfigError, match="ART_PROGRESS must be bars or lines, got 'none'"):
        walked()


@pytest.mark.parametrize("screen", [io.StringIO, Terminal])
def test_a_child_shows_progress_as_this_process_does(monkeypatch, screen):
    monkeypatch.setattr(sys, "stderr", screen())
    before = draws_bars(), interval_s()
    settings = child_settings()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert (draws_bars(), interval_s()) == before


def test_a_program_without_standard_error_has_no_bars(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not draws_bars()


@pytest.mark.parametrize("screen", [io.StringIO, Terminal])
def test_a_bar_that_is_disabled_prints_nothing(monkeypatch, screen):
    monkeypatch.setattr(sys, "stderr", screen())
    walked(disable=True)
    assert sys.stderr.getvalue() == ""


def test_a_library_that_takes_a_class_of_bars_prints_lines(log):
    bars = line_progress()
    assert issubclass(bars, tqdm)
    assert list(bars(range(3), desc="files")) == [0, 1, 2]
    assert log().splitlines()[-1].startswith("files: 100% 3/3")


def test_the_environment_sets_the_interval(monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "7")
    assert interval_s() == 7.0


@pytest.mark.parametrize(
    ("text", "lines", "rest"),
    [
        ("", "", ""),
        ("half", "", "half"),
        ("a\nb\nc", "a\nb\n", "c"),
        ("0%\r50%\r100%\nnext", "100%\n", "next"),
        ("windows\r\n\n", "windows\n\n", ""),
        ("a\n0%\r50%", "a\n", "0%\r50%"),
    ],
)
def test_of_what_is_drawn_over_only_the_end_of_each_line_is_kept(text, lines, rest):
    assert final_lines(text) == (lines, rest)
