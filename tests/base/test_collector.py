"""The collector is as it was after a pause."""

from __future__ import annotations

import gc
import sys
from types import ModuleType

import pytest

from art_core.base import collector
from art_core.base.collector import collector_paused, importing


@pytest.mark.parametrize("enabled", [True, False])
def test_a_pause_ends_as_it_began(enabled):
    was = gc.isenabled()
    try:
        if not enabled:
            gc.disable()
        with collector_paused():
            assert not gc.isenabled()
            with collector_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        if was:
            gc.enable()


def test_a_pause_ends_also_by_an_error():
    was = gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector_paused():
        _ = 1 / 0
    assert gc.isenabled() == was


@pytest.mark.parametrize(("modules", "frozen"), [(3, True), (2, False)])
def test_large_imports_are_left_out_of_collections(monkeypatch, modules, frozen):
    calls = []
    monkeypatch.setattr(collector, "LARGE_IMPORT", 3)
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(gc.isenabled()))
    with importing():
        for number in range(modules):
            monkeypatch.setitem(sys.modules, f"large_{number}", ModuleType("large"))
    assert calls == [False] * frozen
