"""Paid calls whose run is not known yet: they wait in the account of their group, or of none, until
a model logs groups.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
from collections.abc import Sequence
from weakref import WeakSet

import attrs

from art_core.base.threads import scopes
from art_core.budgets.hold import Hold, active_source
from art_core.budgets.run_budget import RunBudget
from art_core.costs.builder import MetricsBuilder, PriceBook
from art_core.data.account import UNOWNED, Account, book_all, flush, unsettled
from art_core.data.trajectory import TrajectoryGroup
from art_core.hooks.host import installed_plugins
from art_core.metrics.receipt import Receipt, TokenRates, TokenUsage

log = logging.getLogger("art_core")

_ELSEWHERE = (
    "calls of %r run in a thread that began before the active metrics builder was activated; "
    "their cost goes to that builder, the only active one. Activate it inside the thread."
)
_GUESSED = (
    "calls of %r belong to no group that was logged, and several models were open: the model "
    "that logged groups next has their cost."
)
_UNOWNED_OF_NONE, _UNOWNED_OF_SEVERAL = (
    "calls of %r run without an active metrics builder, outside of a gathering, and "
    f"{models} open: their cost is kept, and goes to the run of the next model that logs groups. "
    "Wrap them in `with model.metrics_builder('train').activate_context():`."
    for models in ("no model is", "several models are")
)


default_builders: WeakSet[MetricsBuilder] = WeakSet()
"""Builders of the open models. A cost without an active builder goes to the only one."""
_defaults = threading.Lock()


def offer_default(builder: MetricsBuilder) -> None:
    """Add a builder to the default builders."""
    with _defaults:
        default_builders.add(builder)


def withdraw_default(builder: MetricsBuilder) -> None:
    """Remove a builder from the default builders, if it is one of them."""
    with _defaults:
        default_builders.discard(builder)


def open_builders() -> list[MetricsBuilder]:
    """Return the default builders of the open models."""
    with _defaults:
        return list(default_builders)


@attrs.frozen(kw_only=True, eq=False)
class PendingCall:
    """A paid call that no run has booked. `usage` is None if it could not be read.

    `prices` is the price book that was used before the call; it prices the call if the book of the
    paying model can't. `several` is True if several models were open at the call.
    """

    source: str
    prices: PriceBook
    provider: str = ""
    model_name: str = ""
    usage: TokenUsage | None = None
    rates: TokenRates | None = None
    several: bool = False
    hold: Hold | None = None

    def book(self, owner: MetricsBuilder) -> None:
        """Add the cost to a builder."""
        if self.usage is None:
            owner.add_unpriced()
            return
        names = {"provider": self.provider, "model_name": self.model_name}
        rates = self._rates_for(owner, self.usage)
        owner.add_usage(self.source, self.usage, **names, rates=rates, hold=self.hold)

    def quote(self) -> float | None:
        """Return US dollars, None when unpriced."""
        if self.usage is None:
            return None
        return self.prices.price(self.provider, self.model_name, self.usage, self.rates)

    def receipt(self) -> Receipt | None:
        """Return the receipt, without a leaf; None if the usage could not be read."""
        if self.usage is None:
            return None
        return self.prices.bill(self.provider, self.model_name, self.usage, self.rates)

    def covered(self, budget: RunBudget | None) -> float:
        """Return the dollars that a run's budget has counted."""
        return self.hold.settled(self.quote(), budget) if self.hold else 0.0

    def _rates_for(self, owner: MetricsBuilder, usage: TokenUsage) -> TokenRates | None:
        if self.rates or owner.prices is self.prices:
            return self.rates
        if owner.prices.rates(self.provider, self.model_name, usage):
            return None
        return self.prices.rates(self.provider, self.model_name, usage)


@attrs.frozen(eq=False)
class PendingPayer:
    """Takes the paid calls of a source like a metrics builder, until the paying model is known."""

    source: str
    account: Account
    prices: PriceBook

    @property
    def budget(self) -> RunBudget | None:
        """The budget that limits the calls: that of the evaluation that runs, or of the only open
        model that has one.
        """
        source = active_source.get()
        if source is not None:
            return source[0]
        found = {id(b): b for b in (each.budget for each in open_builders()) if b is not None}
        return next(iter(found.values())) if len(found) == 1 else None

    def add_usage(
        self,
        source: str,
        usage: TokenUsage,
        *,
        provider: str,
        model_name: str,
        rates: TokenRates | None = None,
        hold: Hold | None = None,
    ) -> None:
        """Add a call to the account."""
        call = PendingCall(
            source=source,
            prices=self.prices,
            provider=provider,
            model_name=model_name,
            usage=usage,
            rates=rates,
            hold=hold,
        )
        if hold is not None:
            hold.settle(call.quote())
        self._add(call)

    def add_unpriced(self) -> None:
        """Add a call whose usage could not be read."""
        self._add(PendingCall(source=self.source, prices=self.prices))

    def _add(self, call: PendingCall) -> None:
        models = len(open_builders())
        if self.account is UNOWNED and models != 1:
            _warn_once(_UNOWNED_OF_SEVERAL if models else _UNOWNED_OF_NONE, self.source)
        self.account.add(attrs.evolve(call, several=models > 1))


def book_for(provider: str, model_name: str) -> PriceBook:
    """Return the price book of an open model that can price a call, else any."""
    books = [b.prices for b in open_builders()] or [PriceBook(installed_plugins())]
    return next((book for book in books if book.can_price(provider, model_name)), books[0])


def settle(groups: Sequence[TrajectoryGroup], builder: MetricsBuilder) -> None:
    """Book the paid calls of groups that a model logs or trains on.

    Calls outside of a gathering are booked too, in the context of the groups. In a row without
    groups they are booked as training, if no other model is open.
    """
    for group in groups:
        for account in group.accounts():
            account.settle(builder)
    if groups:
        _book_unowned(builder)
    elif _only_open(builder):
        _book_unowned(attrs.evolve(builder, context="train"))
    flush()


def _book_unowned(builder: MetricsBuilder) -> None:
    calls = UNOWNED.take()
    for source in {call.source for call in calls if call.several}:
        _warn_once(_GUESSED, source)
    book_all(builder, calls)


def settle_rest(builder: MetricsBuilder) -> None:
    """Book all paid calls that no model has booked, at the close of the only open model."""
    flush()
    if not _only_open(builder):
        return
    left = [(account, account.take()) for account in unsettled()]
    doubtful = sorted({c.source for _, calls in left for c in calls if c.several})
    if doubtful:
        log.warning(
            "paid calls of %s belong to no group that was logged, and were made while several "
            "models were open: the last open model's run has their cost",
            doubtful,
        )
    for account, calls in left:
        book_all(builder, calls)
        if account is not UNOWNED:
            account.settle(builder)


def report_unpaid() -> None:
    """Warn at the end of the program of paid calls that are in no run."""
    flush()
    calls = [call for account in unsettled() for call in account.take()]
    if calls:
        log.warning(
            "the program ends, and %d paid calls of %s are in no run: about $%.6g. Log their "
            "groups, or call inside `with model.metrics_builder('train').activate_context():`.",
            len(calls),
            sorted({call.source for call in calls}),
            sum(call.quote() or 0.0 for call in calls),
        )


atexit.register(report_unpaid)


def _only_open(builder: MetricsBuilder) -> bool:
    return all(other.ledger is builder.ledger for other in open_builders())


def only_scope(source: str) -> tuple[MetricsBuilder | None, Account | None]:
    """Return the builder or the account that is active in other threads, if it is the only one."""
    if threading.current_thread() is threading.main_thread():
        return None, None
    active = scopes()
    builders = {(id(s.ledger), s.context): s for s in active if isinstance(s, MetricsBuilder)}
    accounts = {id(s): s for s in active if isinstance(s, Account)}
    if len(builders) == 1:
        _warn_once(_ELSEWHERE, source)
        return next(iter(builders.values())), None
    if not builders and len(accounts) == 1:
        return None, next(iter(accounts.values()))
    return None, None


@functools.cache
def _warn_once(text: str, source: str) -> None:
    log.warning(text, source)
