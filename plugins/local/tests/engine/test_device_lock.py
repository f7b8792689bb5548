"""Turns at the device: one at a time, first come first served."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from engine_helpers import PROMPTS, sample

from art_core.base.errors import BackendError, EngineError
from art_core.endpoint.engine import Sampling
from art_local.engine import DeviceLock, TransformersEngine

pytestmark = pytest.mark.torch


def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    lock, served = DeviceLock(), []

    def take(name: str) -> None:
        with lock.hold(name):
            served.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    with lock.hold("first"):
        assert lock.holder == "first"
        for count, thread in enumerate(threads, start=1):
            thread.start()
            while len(lock._queue) < count:
                time.sleep(0.001)
    for thread in threads:
        thread.join(5)
    assert served == ["a", "b", "c"] and lock.holder is None


def test_a_turn_that_does_not_come_in_time_names_the_holder() -> None:
    lock = DeviceLock()
    failures = []

    def take() -> None:
        try:
            with lock.hold("generating", timeout_s=0.05):
                pass
        except BackendError as error:
            failures.append(str(error))

    with lock.hold("training step"):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join(5)
    assert failures == ["'generating' did not get the device within 0.05 s; 'training step' has it"]
    with lock.hold("after"):
        pass


def test_taking_a_turn_inside_a_turn_is_an_error_not_a_hang() -> None:
    lock = DeviceLock()
    with lock.hold("outer"), pytest.raises(BackendError, match="inside 'outer'"):  # noqa: SIM117
        with lock.hold("inner"):
            pass
    assert lock.holder is None


async def test_a_request_that_waits_too_long_says_who_has_the_device(model) -> None:
    lock = DeviceLock()
    engine = TransformersEngine(model, lock=lock, request_timeout_s=0.2)
    with lock.hold("training step"), pytest.raises(EngineError, match="held by 'training step'"):
        await sample(engine, PROMPTS[0])
    await engine.close()


async def test_trainer_and_engine_take_turns(model) -> None:
    lock = DeviceLock()
    engine = TransformersEngine(model, lock=lock)
    task = asyncio.create_task(sample(engine, PROMPTS[0], Sampling(max_tokens=300, seed=2)))
    got = threading.Event()

    def train():
        for _ in range(5):
            with lock.hold("training step", timeout_s=5):
                pass
        got.set()

    await asyncio.to_thread(train)
    assert got.is_set() and not task.done()
    assert (await task)[-1].finish
    await engine.close()
