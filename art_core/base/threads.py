"""Context variables that are carried into threads, blocks that other threads know of, and the size
of the default thread pool.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

Values = Mapping[ContextVar[Any], Any]
_carried: set[ContextVar[Any]] = set()


def carry_into_threads(*variables: ContextVar[Any]) -> None:
    """Give the values of variables to each `threading.Thread` and each call of a thread pool that
    is started from now on. Variables without a value, or with None, are not carried.
    """
    _carried.update(variables)
    _patch_threads()


def present() -> Values:
    """Return the values of the carried variables in this context, to be set in another."""
    values = {variable: variable.get(None) for variable in _carried}
    return {variable: value for variable, value in values.items() if value is not None}


@contextmanager
def having(values: Values) -> Iterator[None]:
    """Set variables inside the block."""
    tokens = {variable: variable.set(value) for variable, value in values.items()}
    try:
        yield
    finally:
        for variable, token in tokens.items():
            variable.reset(token)


@functools.cache
def _patch_threads() -> None:
    """Wrap the two methods that begin work in another thread, once in a process."""
    submit: Any = ThreadPoolExecutor.submit
    start: Any = threading.Thread.start

    @functools.wraps(submit)
    def carrying_submit(
        pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        values = present()
        if not values:
            return submit(pool, function, *args, **kwargs)
        # A worker that starts here goes on after this call, so it gets no values of its own.
        with having(dict.fromkeys(values)):
            return submit(pool, _called_with, values, function, *args, **kwargs)

    @functools.wraps(start)
    def carrying_start(thread: threading.Thread) -> None:
        values = present()
        if values:
            _wrap_run(thread, values)
        start(thread)

    methods: dict[type[Any], tuple[str, Any]] = {
        ThreadPoolExecutor: ("submit", carrying_submit),
        threading.Thread: ("start", carrying_start),
    }
    for owner, (name, method) in methods.items():
        setattr(owner, name, method)


def _called_with(values: Values, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with having(values):
        return function(*args, **kwargs)


def _wrap_run(thread: threading.Thread, values: Values) -> None:
    run = thread.run

    def running() -> None:
        del thread.run  # it holds the values, and refers to its own thread
        with having(values):
            run()

    thread.run = running  # type: ignore[method-assign]


MAX_THREADS = 1024
"""asyncio's own pool has four threads more than there are cores. Agents in threads wait
for answers in them: the fifth agent of a core would wait for a thread while its `timeout` runs. A
thread is started only if no other one is idle."""

_ASYNCIOS_OWN = "asyncio"
_widened: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


def widen_thread_pool() -> None:
    """Give the running event loop a default pool of MAX_THREADS threads, once, unless the program
    has set a pool of its own.
    """
    loop = asyncio.get_running_loop()
    if loop in _widened:
        return
    _widened.add(loop)
    # An event loop has no public way to return its pool; asyncio's own one has this prefix.
    pool: Any = getattr(loop, "_default_executor", None)
    if pool is None or getattr(pool, "_thread_name_prefix", "") == _ASYNCIOS_OWN:
        loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="art-agent"))


T = TypeVar("T")
_scopes: list[tuple[int, Any]] = []


@contextmanager
def in_scope(scope: T) -> Iterator[T]:
    """Make an object known to other threads while the block runs: see `scopes`."""
    entered = (threading.get_ident(), scope)
    _scopes.append(entered)
    try:
        yield scope
    finally:
        _scopes.remove(entered)


def scopes() -> list[Any]:
    """Return the objects of the blocks of `in_scope` that are running in other threads."""
    return [scope for thread, scope in list(_scopes) if thread != threading.get_ident()]
