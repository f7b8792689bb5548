"""How torch's threads wait: helpers end where a thread stops computing, and all of them sleep while
another process works.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from art_local import threads
from art_local.engine import device_lock
from art_local.engine.device_lock import DeviceLock
from art_local.threads import release_helpers

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
    assert threads._pause() is None
    release_helpers()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libgomp.so.1").write_text("no library")
    assert threads._pause() is None
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


def test_threads_sleep_while_the_computing_one_waits_for_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    stat, before = tmp_path / "schedstat", set(threading.enumerate())
    watch = threads.CoreWatch(stat)
    watch.look()
    assert not watch.is_shared
    states = []
    for ran, waited in [(100, 5), (200, 9), (300, 40), (400, 45), (500, 47), (500, 47)]:
        stat.write_text(f"{ran} {waited} 7\n")
        watch.look()
        states.append(watch.is_shared)
    # the first look only counts; a share between the limits changes nothing
    assert states == [False, False, True, True, False, False]
    assert all(map(_ended, set(threading.enumerate()) - before))


def test_a_watch_that_nobody_has_lets_threads_go(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "LOOK_S", 0.0)
    stat, before = tmp_path / "schedstat", set(threading.enumerate())
    watch = threads.CoreWatch(stat)
    for waited in (0, 90):
        stat.write_text(f"{100 + waited} {waited} 7\n")
        watch.look()
    assert watch.is_shared
    del watch
    assert all(map(_ended, set(threading.enumerate()) - before))


def _ended(thread):
    thread.join(10)
    return not thread.is_alive()


def test_a_look_soon_after_another_counts_nothing(tmp_path):
    stat = tmp_path / "schedstat"
    stat.write_text("100 5 7\n")
    watch = threads.CoreWatch(stat)
    watch.look()
    stat.write_text("200 95 7\n")
    watch.look()
    assert not watch.is_shared
    stat.write_text("not numbers\n")
    other = threads.CoreWatch(stat)
    other.look()
    other.close()
    assert not other.is_shared
