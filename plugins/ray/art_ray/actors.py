"""Calls of actors: their errors as errors of art-core, and waiting until a lost actor is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from art_core import ArtError, BackendError

LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError)
"""Errors of a call whose actor's process or node was lost."""
RETRY_S = 0.5


def plain(error: Exception) -> Exception:
    """Return the error that the code in an actor raised, without Ray's text around it."""
    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and isinstance(cause, Exception):
        return cause
    return error


def result(reference: Any, timeout_s: float | None = None) -> Any:
    """Return the result of a call. Blocks.

    Raises the errors of art-core that the actor raised, those in `LOST`, and BackendError for all
    others.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except LOST:
        raise
    except GetTimeoutError:
        raise BackendError(f"no answer came within {timeout_s:g} s") from None
    except (RayTaskError, TaskCancelledError) as error:
        cause = plain(error)
        if isinstance(cause, ArtError):
            raise cause from None
        raise


def persistent(call: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Return the result of a call, again while the actor's process is started anew. Blocks.

    Raises BackendError if it has not come back in time, or will not.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            return result(call(), max(left, 0.001))
        except ActorDiedError as error:
            raise BackendError(
                f"{what} was lost, and Ray does not start it again: {first_line(error)}",
                "Raise max_restarts, or look at the node's log; register(...) starts another one.",
            ) from error
        except LOST as error:
            if left <= 0:
                raise BackendError(
                    f"{what} was lost and did not come back within {timeout_s:g} s: "
                    f"{first_line(error)}",
                    "`ray status` shows which resources are free.",
                ) from error
            time.sleep(RETRY_S)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, which Ray makes long."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
