"""An attempt without a trajectory: a failure as data."""

from __future__ import annotations

from typing import Literal

import attrs

from art_core.base.errors import ConfigError, message_text, traceback_text, without_secrets

FailureReason = Literal["raised", "timeout", "wrong_type", "bad_reward"]


@attrs.frozen(kw_only=True)
class RolloutFailure:
    """An attempt without a trajectory: the kind of failure, its message and its traceback."""

    reason: FailureReason
    type: str
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, reason: FailureReason = "raised") -> RolloutFailure:
        """Describe an exception without secrets, also one whose text cannot be made."""
        return cls(
            reason=reason,
            type=type(error).__name__,
            message=without_secrets(message_text(error)),
            traceback=without_secrets(traceback_text(error)),
        )

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


def failure_of(error: BaseException | RolloutFailure) -> RolloutFailure:
    """Return a failure as it is, or that of an exception; ConfigError for anything else."""
    if isinstance(error, RolloutFailure):
        return error
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error  # it ends the program, and is no failure of an attempt
    if not isinstance(error, BaseException):
        raise ConfigError(
            f"exceptions of a trajectory group must be exceptions, not {type(error).__name__}"
        )
    return RolloutFailure.of(error)
