"""A step's adapter stays in the engine while a request may use it."""

from __future__ import annotations

import gc

import pytest

from art_core.endpoint.engine import Sampling
from art_local.session.endpoint import LeasedEngine, LoadedSteps


@pytest.fixture
def loaded():
    gone: list[str] = []
    steps = LoadedSteps(2, gone.append)
    for step in (1, 2):
        steps.add(step, f"m@{step}", newest=step)
    return steps, gone


def test_the_least_recently_used_step_goes_first(loaded):
    steps, gone = loaded
    del_later = steps.lease(1)
    del del_later
    gc.collect()
    steps.add(3, "m@3", newest=3)
    assert gone == ["m@2"]
    assert steps.steps() == [1, 3]


def test_a_leased_step_stays_and_goes_once_nobody_holds_it(loaded):
    steps, gone = loaded
    first, second = steps.lease(1), steps.lease(2)
    steps.add(3, "m@3", newest=3)
    assert (gone, steps.steps()) == ([], [1, 2, 3])
    assert (first.adapter, second.adapter) == ("m@1", "m@2")
    del first
    steps.add(4, "m@4", newest=4)
    assert gone == ["m@1", "m@3"]
    assert steps.steps() == [2, 4]


def test_the_newest_step_stays_also_when_an_older_one_is_loaded(loaded):
    steps, gone = loaded
    steps.add(7, "m@7", newest=7)
    steps.add(1, "m@1", newest=7)
    assert gone == ["m@1", "m@2"]
    assert steps.steps() == [7, 1]


def test_a_step_that_is_not_loaded_has_no_lease(loaded):
    assert loaded[0].lease(9) is None


def test_who_holds_the_leased_engine_holds_the_lease(loaded):
    steps, gone = loaded

    class Nothing:
        context_length = 8

        def generate(self, prompt_ids, sampling, adapter):
            return prompt_ids, adapter

    engine = LeasedEngine(Nothing(), steps.lease(1))
    assert engine.context_length == 8
    assert engine.generate([5], Sampling(max_tokens=1), "m@1") == ([5], "m@1")
    steps.add(3, "m@3", newest=3)
    steps.add(4, "m@4", newest=4)
    assert "m@1" not in gone
    del engine
    steps.add(5, "m@5", newest=5)
    assert "m@1" in gone


def test_clearing_unloads_everything(loaded):
    steps, gone = loaded
    steps.clear()
    assert (gone, steps.steps()) == (["m@1", "m@2"], [])
