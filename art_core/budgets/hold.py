"""The hold of a paid call: its reservations in all budgets that limit it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs

from art_core.base.errors import BudgetError
from art_core.base.spending import Spending, active_spending
from art_core.budgets.account import BudgetAccount, Reservation
from art_core.budgets.estimate import bound_of_call
from art_core.budgets.run_budget import RunBudget
from art_core.metrics.receipt import TokenRates

active_limits: ContextVar[tuple[BudgetAccount, ...]] = ContextVar("art_active_limits", default=())
active_source: ContextVar[tuple[RunBudget, str] | None] = ContextVar(
    "art_active_source", default=None
)
"""The budget and the split whose reservation the calls of an evaluation draw from."""


@contextmanager
def limited_by(account: BudgetAccount) -> Iterator[None]:
    """Hold the calls of the block to an account, beside those around it."""
    token = active_limits.set((*active_limits.get(), account))
    try:
        yield
    finally:
        active_limits.reset(token)


@contextmanager
def drawing_from(budget: RunBudget | None, split: str) -> Iterator[None]:
    """Have the calls of the block draw from a split's reservation in a run's budget."""
    token = active_source.set(None if budget is None else (budget, split))
    try:
        yield
    finally:
        active_source.reset(token)


@attrs.define(eq=False)
class Hold:
    """What is reserved for one paid call, at most `usd` dollars in each of several accounts."""

    usd: float
    parts: list[tuple[BudgetAccount, Reservation]]
    spending: Spending | None = None
    per_attempt: float | None = None
    paid: float | None = None

    def enter_attempt(self) -> None:
        """Add the call to those of its attempt; BudgetError if they come to too much."""
        if self.spending is not None and self.per_attempt is not None:
            self.spending.held += self.usd
            if self.spending.held > self.per_attempt:
                raise _attempt_error(self.spending.held, self.per_attempt)

    def settle(self, usd: float | None) -> None:
        """Replace the reservations by what the call cost; by their dollars if that is not known.
        A second time changes nothing.
        """
        if self.paid is not None:
            return
        self.paid = self.usd if usd is None else usd
        for account, reservation in self.parts:
            account.settle(reservation, self.paid)
        if self.spending is not None and self.per_attempt is not None:
            self.spending.held += self.paid - self.usd
            if self.spending.held > self.per_attempt:
                error = _attempt_error(self.spending.held, self.per_attempt)
                self.spending.exceeded = self.spending.exceeded or error

    def fail(self, error: BaseException) -> None:
        """Settle for a call without an answer: free, unless it may go on at its service."""
        late = isinstance(error, asyncio.CancelledError | TimeoutError)
        self.settle(None if late or "imeout" in type(error).__name__ else 0.0)

    def settled(self, usd: float | None, budget: RunBudget | None) -> float:
        """Settle, and return the dollars of a run's account that its log shows from now on."""
        self.settle(usd)
        return 0.0 if usd is None else self.paid_from(budget)

    def paid_from(self, budget: RunBudget | None) -> float:
        """Return the dollars that were settled in a run's account."""
        if budget is None:
            return 0.0
        own = budget.account
        of_run = any(each is own or (each.path and each.path == own.path) for each, _ in self.parts)
        return (self.paid or 0.0) if of_run else 0.0


def hold(
    budget: RunBudget | None,
    kind: str,
    rates: TokenRates | None,
    request: Mapping[str, Any],
) -> Hold:
    """Reserve a call in its run's budget and in those around it.

    BudgetError, with nothing reserved, if one of them can't pay it.
    """
    limits = active_limits.get()
    accounts = [*limits] if budget is None else [budget.account, *limits]
    bounds = [_bound(account, kind, rates, request) for account in accounts]
    usd = max(bounds)
    spending = active_spending.get()
    held = Hold(usd, [], spending, _per_attempt(accounts))
    try:
        held.enter_attempt()
        for account in accounts:
            held.parts.append((account, _reserved(budget, account, kind, usd)))
    except BaseException as error:
        held.settle(0.0)
        if spending is not None and isinstance(error, BudgetError) and error.scope != "calls":
            spending.exceeded = spending.exceeded or error
        raise
    return held


def _reserved(
    budget: RunBudget | None, account: BudgetAccount, kind: str, usd: float
) -> Reservation:
    if budget is None or account is not budget.account:
        return account.reserve(kind, usd)
    source = active_source.get()
    split = source[1] if source is not None and source[0] is budget else "train"
    return account.reserve(kind, usd, within=budget.opened(split) or budget.opened("train"))


def _bound(
    account: BudgetAccount, kind: str, rates: TokenRates | None, request: Mapping[str, Any]
) -> float:
    usd, stated = bound_of_call(account.costs_of(kind), rates, request), None
    if rates is None:
        stated = account.terms.unknown_price_usd
    known = [each for each in (usd, stated) if each is not None]
    if not known:
        raise account.refused(
            f"the price of {kind} is not known, and a budget of ${account.terms.usd:g} holds",
            "Register its price with register_model_pricing, or state an upper bound of one call: "
            "art.budget(..., unknown_price_usd=0.05).",
        )
    return min(known)


def _per_attempt(accounts: Sequence[BudgetAccount]) -> float | None:
    limits = [account.terms.per_attempt for account in accounts]
    return min((each for each in limits if each is not None), default=None)


def _attempt_error(usd: float, limit: float) -> BudgetError:
    error = BudgetError(
        f"the paid calls of this attempt come to ${usd:.4g}, more than per_attempt=${limit:g}",
        "Raise per_attempt, or let the agent make fewer calls.",
    )
    error.scope = "attempt"
    return error
