"""Where a run's money went: the tree, step by step, what was bought, what the reward cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.log.reader import Costs, LoggedRun, receipts_of
from art_core.log.timeline import Timeline
from art_core.metrics.receipt import Receipt
from art_core.prices.table import is_old

_REWARDS = ("reward/mean", "val/reward")


@attrs.frozen
class RewardPrice:
    """What the gain in a reward cost, from the first value to the newest and to the best.

    Dollars per point are the run's whole cost over the gain; None where nothing was gained.
    """

    key: str
    first: float
    last: float
    best: float
    spent: float

    @property
    def per_point_last(self) -> float | None:
        """Dollars per point of reward between the first value and the newest."""
        return _ratio(self.spent, self.last - self.first)

    @property
    def per_point_best(self) -> float | None:
        """Dollars per point of reward between the first value and the best."""
        return _ratio(self.spent, self.best - self.first)


def _ratio(spent: float, gain: float) -> float | None:
    return spent / gain if gain > 0 else None


@attrs.define
class CostReport:
    """A run's costs in US dollars.

    `total` and the values of `steps` map a path below `costs/` to dollars; `all` is the whole.
    A step counts all its rows, on every split and in every attempt. `trained` are the trained steps
    of the current line: a step that a later attempt repeated is one, and one that it replaced by an
    older step is none. `old_prices` are dates of price lists
    by what was bought, of those that were old when they were used.
    """

    total: dict[str, float] = attrs.field(factory=dict)
    steps: dict[int, dict[str, float]] = attrs.field(factory=dict)
    bought: dict[tuple[Any, ...], Receipt] = attrs.field(factory=dict)
    unpriced_calls: float = 0.0
    partly_priced_calls: float = 0.0
    unread_receipts: int = 0
    old_prices: dict[str, str] = attrs.field(factory=dict)
    rewards: Mapping[str, dict[int, float]] = attrs.field(factory=dict)
    trained: set[int] = attrs.field(factory=set)

    def per_trained_step(self, usd: float) -> float | None:
        """Return dollars per trained step; None when no step was trained."""
        return usd / len(self.trained) if self.trained else None

    def priced(self) -> list[Receipt]:
        """What was bought at a known price, the dearest first."""
        found = [r for r in self.bought.values() if r.usd is not None]
        return sorted(found, key=lambda r: -(r.usd or 0.0))

    def unpriced(self) -> list[Receipt]:
        """What was bought and is in no cost, since its price was not known."""
        return [receipt for receipt in self.bought.values() if receipt.usd is None]

    def partly_priced(self) -> list[Receipt]:
        """What was bought and is in the costs with a part of its bill."""
        return [receipt for receipt in self.bought.values() if receipt.unread]

    def reward_price(self) -> RewardPrice | None:
        """What the reward cost, of training if it was logged, else of evaluations."""
        for key in _REWARDS:
            if values := [v for _, v in sorted(self.rewards.get(key, {}).items())]:
                return RewardPrice(
                    key, values[0], values[-1], max(values), self.total.get("all", 0.0)
                )
        return None


def read_costs(run: LoggedRun) -> CostReport:
    """Read a run's costs from its log."""
    line = Timeline(run.taxonomy, lambda key: key.startswith("costs/") or key in _REWARDS)
    report = CostReport()
    for row in run.rows():
        metrics = line.add(row)
        report.steps.setdefault(row.step, {})
        report.unpriced_calls += metrics.get("data/step_unpriced_calls", 0.0)
        report.partly_priced_calls += metrics.get("data/step_partly_priced_calls", 0.0)
        report.unread_receipts += len(row.receipts)
        for receipt in receipts_of(row):
            report.unread_receipts -= 1
            as_of = receipt.rates.get("as_of")
            if is_old(as_of, row.recorded_at.date()):
                report.old_prices[item_name(receipt)] = str(as_of)
            before = report.bought.get(receipt.kind)
            report.bought[receipt.kind] = before.plus(receipt) if before else receipt
    costs = Costs.of_line(line)
    report.total, report.trained = costs.total, line.trained
    report.steps |= costs.steps
    report.rewards = {key: line.curve(key) for key in _REWARDS}
    return report


def item_name(receipt: Receipt) -> str:
    """Return what was bought as provider/item; an item that names its provider stays as it is."""
    if not receipt.provider or receipt.item.startswith(f"{receipt.provider}/"):
        return receipt.item
    return f"{receipt.provider}/{receipt.item}"
