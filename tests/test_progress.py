"""How often a progress bar is drawn: by who reads it."""

from __future__ import annotations

import io
import sys
import time

import pytest

from art_core.progress import interval_s, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)


def drawn(screen, monkeypatch, **options):
    """How often a bar that moves for half a second is drawn."""
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar(desc="walk", **options) as bar:
        for _ in range(50):
            time.sleep(0.01)
            bar.update()
    return screen.getvalue().count("walk")


def test_a_log_has_a_bar_when_it_begins_and_when_it_ends(monkeypatch):
    screen = io.StringIO()
    assert drawn(screen, monkeypatch, total=50) == 2
    assert "50/50" in screen.getvalue()


def test_a_bar_in_a_terminal_moves(monkeypatch):
    assert drawn(Terminal(), monkeypatch, total=50) >= 4


def test_a_bar_in_a_notebook_moves(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert drawn(io.StringIO(), monkeypatch, total=50) >= 4


def test_a_bar_that_is_disabled_is_not_drawn(monkeypatch):
    assert drawn(Terminal(), monkeypatch, disable=True) == 0


def test_the_environment_says_it_otherwise(monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "7")
    assert interval_s() == 7.0
