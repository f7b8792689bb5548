"""Helpers of threads that compute: they end where a thread stops computing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from art_local.engine import device_lock
from art_local.engine.device_lock import DeviceLock
from art_local.models import threads
from art_local.models.threads import release_helpers

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(
    not TASKS.exists() or threads._pause() is None or (os.cpu_count() or 1) < 2,
    reason="needs the threads of OpenMP's library for Linux",
)
def test_released_helpers_end_and_new_ones_compute_the_same():
    x = torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    found = {}

    def compute():
        torch.set_num_threads(2)
        own = {int(task.name) for task in TASKS.iterdir()}

        def helpers():
            return {int(task.name) for task in TASKS.iterdir()} - own

        first, during = x @ x, helpers()
        release_helpers()
        found.update(during=during, after=helpers() & during, same=torch.equal(x @ x, first))

    before, threads_before = torch.get_num_threads(), threading.active_count()
    try:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found["during"]
    assert not found["after"]
    assert found["same"]
    assert threading.active_count() == threads_before


def test_without_openmps_library_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(threads, "_pause", threads._pause.__wrapped__)
    release_helpers()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libgomp.so.1").write_text("no library")
    release_helpers()


def test_a_turn_that_nobody_waits_for_keeps_its_helpers(monkeypatch):
    released = []
    monkeypatch.setattr(device_lock, "release_helpers", lambda: released.append(1))
    lock = DeviceLock()
    with lock.hold("alone"):
        pass
    assert not released

    def wait():
        with lock.hold("second"):
            pass

    second = threading.Thread(target=wait)
    with lock.hold("first"):
        second.start()
        while not lock._queue:
            pass
    second.join()
    assert released == [1]
