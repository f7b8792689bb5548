"""The terms of a budget, as `art.budget` makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.numbers import number_or_none
from art_core.base.spending import active_spending

if TYPE_CHECKING:
    from art_core.budgets.account import BudgetAccount


def _amount(_: Any, attribute: Any, value: Any) -> None:
    """Check a term that is a number of at least 0; it may be None by default."""
    if value is None and attribute.default is None:
        return
    number = number_or_none(value)
    if number is None or number < 0 or isinstance(value, str):
        raise ConfigError(
            f"{attribute.name} of a budget must be a number of at least 0, got {value!r:.80}",
            "Such as art.budget(usd=25).",
        )


def _path(value: Any) -> Path | None:
    return None if value is None else Path(value).absolute()


def _term(default: Any = None) -> Any:
    return attrs.field(default=default, validator=_amount)


@attrs.frozen(kw_only=True)
class Budget:
    """US dollars that may be spent, and the terms.

    - `usd` is the limit: of a run with all its attempts, or of all that shares `file`.
    - `per_step` limits a training step: its rollouts, judges and training. The first step of a run
      reserves so much; without it, all that is left, since nothing is known of its cost.
    - `per_attempt` limits the paid calls of one attempt, which ends as a failure there.
    - `warn` is the share of `usd` at which there is a warning, once.
    - `file` holds the reservations; processes and runs that name the same one share the dollars.
      By default it is `budget.jsonl` in the run's directory.
    - `min_reward_per_usd` ends training when the last 20 steps gained less mean reward per dollar.
    - `unknown_price_usd` is an upper bound of a call whose price is not known; without it such a
      call is refused.
    """

    usd: float = attrs.field(validator=_amount)
    per_step: float | None = _term()
    per_attempt: float | None = _term()
    warn: float = _term(0.8)
    file: Path | None = attrs.field(default=None, converter=_path)
    min_reward_per_usd: float | None = _term()
    unknown_price_usd: float | None = _term()

    def __attrs_post_init__(self) -> None:
        for name in ("per_step", "per_attempt"):
            part = getattr(self, name)
            if part is not None and part > self.usd:
                raise ConfigError(
                    f"a budget of ${self.usd:g} is below {name}=${part:g}: nothing could begin",
                    f"Raise usd, or lower {name}.",
                )

    @contextmanager
    def limiting(self) -> Iterator[BudgetAccount]:
        """Hold the paid calls of the block, and of tasks and threads that it starts, to the budget:
        calls of functions with `@art.track_api_cost`, of judges, and of prompted models.

        BudgetError before a call that would exceed it: inside a rollout it ends the attempt, around
        a gathering or an evaluation it ends that. Without a `file` the block begins at 0.
        """
        from art_core.budgets.account import BudgetAccount
        from art_core.budgets.hold import limited_by

        inside = active_spending.get() is not None
        account = BudgetAccount(self, self.file, "calls" if inside else "run")
        try:
            with limited_by(account):
                yield account
        finally:
            account.close()


def budget(usd: float, **terms: Any) -> Budget:
    """Return a budget of US dollars for a model, `art.Model(..., budget=art.budget(usd=25))`, or
    for other code, `with art.budget(usd=1).limiting():`. Terms are those of `Budget`.
    """
    return Budget(usd=usd, **terms)
