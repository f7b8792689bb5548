"""A thread has the context that started it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from art_core.base.threads import carry_into_threads, having, present

CARRIED: ContextVar[str | None] = ContextVar("carried", default=None)
OTHER: ContextVar[str] = ContextVar("other", default="nothing")


@pytest.fixture(autouse=True)
def carried():
    carry_into_threads(CARRIED)


def seen():
    return CARRIED.get(), OTHER.get()


def test_a_call_of_a_pool_has_the_carried_variables_and_no_others():
    with ThreadPoolExecutor(1) as pool:
        with having({CARRIED: "first", OTHER: "set"}):
            assert present()[CARRIED] == "first"
            assert list(pool.map(lambda _: seen(), range(2))) == [("first", "nothing")] * 2
        assert pool.submit(seen).result() == (None, "nothing")
        with having({CARRIED: "second"}):
            assert pool.submit(seen).result() == ("second", "nothing")
    assert CARRIED not in present()


def test_a_thread_has_them_also_one_with_a_run_method_of_its_own():
    found = []

    class Worker(threading.Thread):
        def run(self):
            found.append(seen())

    with having({CARRIED: "set"}):
        threads = [threading.Thread(target=lambda: found.append(seen())), Worker()]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert found == [("set", "nothing")] * 2
    assert all("run" not in vars(thread) for thread in threads)


def test_the_threads_are_patched_once():
    submit, start = ThreadPoolExecutor.submit, threading.Thread.start
    carry_into_threads(CARRIED, OTHER)
    carry_into_threads(OTHER)
    assert (ThreadPoolExecutor.submit, threading.Thread.start) == (submit, start)
