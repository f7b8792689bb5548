"""A run's costs: the tree, the steps, the purchases and the cost of the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from art_core.log.reader import Costs, LoggedRun, receipts_of
from art_core.log.timeline import Timeline
from art_core.metrics.receipt import Receipt
from art_core.prices.tables import is_old

_REWARDS = ("reward/mean", "val/reward")


@attrs.frozen
class RewardPrice:
    """The cost of the gain in a reward, from the first value to the newest and to the best.

    Dollars per point are the run's whole cost divided by the gain; None without a gain.
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
    The costs of a step include all its rows, on every split and in every attempt. `trained` are the
    trained steps of the current line: a step that a later attempt repeated counts once, and a step
    that it replaced does not count. `old_prices` maps purchases to the dates of price lists that
    were old when they were used.
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
        """Return the purchases at a known price, the most expensive first."""
        found = [r for r in self.bought.values() if r.usd is not None]
        return sorted(found, key=lambda r: -(r.usd or 0.0))

    def unpriced(self) -> list[Receipt]:
        """Return the purchases without a known price, which are in no cost."""
        return [receipt for receipt in self.bought.values() if receipt.usd is None]

    def partly_priced(self) -> list[Receipt]:
        """Return the purchases of which the costs have only a part."""
        return [receipt for receipt in self.bought.values() if receipt.unread]

    def reward_price(self) -> RewardPrice | None:
        """Return the cost of the training reward, else of that of evaluations; None without one."""
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
    """Return the name of a purchase as provider/item."""
    if not receipt.provider or receipt.item.startswith(f"{receipt.provider}/"):
        return receipt.item
    return f"{receipt.provider}/{receipt.item}"
