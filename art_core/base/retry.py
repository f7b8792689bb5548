"""Call a function again when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from art_core.base.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger("art_core")


def retry(
    max_attempts: int = 3,
    delay: float = 0.25,
    backoff_factor: float = 2.0,
    exceptions: tuple[type[BaseException], ...] = (Exception,),
    on_retry: Callable[[Any, int], None] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that calls a function, also an async one, up to `max_attempts` times.

    It waits `delay` seconds after the first failure, and each time `backoff_factor` times as long.
    Only `exceptions` are tried again; the last one is raised. `on_retry(exception, attempt)` is
    called before each wait, in place of a warning. ConfigError if tenacity is not installed.
    """
    try:
        import tenacity
    except ImportError as error:
        raise ConfigError(
            "art.retry needs tenacity, which is not installed", "pip install 'art-core[retry]'"
        ) from error

    def before_wait(state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if on_retry is not None:
            on_retry(failure, state.attempt_number)
        else:
            log.warning("attempt %d of %d failed: %s", state.attempt_number, max_attempts, failure)

    wrap: Any = tenacity.retry(
        stop=tenacity.stop_after_attempt(max_attempts),
        wait=tenacity.wait_exponential(multiplier=delay, exp_base=backoff_factor),
        retry=tenacity.retry_if_exception_type(tuple(exceptions)),
        before_sleep=before_wait,
        reraise=True,
    )
    decorate: Callable[[F], F] = wrap
    return decorate
