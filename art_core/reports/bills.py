"""Bills of OpenAI and Anthropic: what each model cost on each day, and its tokens.

Days are those of UTC. A bill is of the whole organization unless it is limited to projects
(OpenAI), workspaces (Anthropic) or keys (OpenAI).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.metrics.receipt import USUAL
from art_core.reports.usage_api import Query, UsageApi

_DATED = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d|latest)$")
DEFAULT_WORKSPACE = "default"
"""The name of Anthropic's default workspace, which has no id."""


@attrs.frozen(kw_only=True)
class Scope:
    """The part of an organization whose bill is read: projects or workspaces, and keys, by id."""

    projects: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@attrs.define(kw_only=True)
class Use:
    """What was used of a model on a day. `tokens` counts them by tier; `cached` is a part of
    `input`.
    """

    usd: float = 0.0
    calls: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    tiers: dict[str, int] = attrs.field(factory=dict)

    def add(
        self, *, input: int, cached: int, output: int, tier: str | None, calls: int = 0
    ) -> None:
        """Add tokens of a tier."""
        self.calls += calls
        self.input += input
        self.cached += cached
        self.output += output
        name = tier or "standard"
        name = "standard" if name in USUAL else name
        self.tiers[name] = self.tiers.get(name, 0) + input + output


@attrs.define(kw_only=True)
class DatedBill:
    """A service's bill by (day, model), in US dollars; amounts of other currencies are in `foreign`
    by (day, currency).
    """

    uses: dict[tuple[date, str], Use] = attrs.field(factory=dict)
    foreign: dict[tuple[date, str], Decimal] = attrs.field(factory=dict)

    def use(self, day: date, model: str) -> Use:
        """Return the use of a model on a day, to add to it."""
        return self.uses.setdefault((day, undated(model)), Use())

    def charge(self, day: date, item: str, amount: Decimal, currency: str) -> None:
        """Add an amount."""
        if currency.lower() == "usd":
            self.use(day, item).usd += float(amount)
        else:
            key = day, currency.upper()
            self.foreign[key] = self.foreign.get(key, Decimal()) + amount


def undated(model: str) -> str:
    """Return a model's name without the date of its version, in lower case."""
    return _DATED.sub("", model.lower())


def openai_bill(api: UsageApi, days: set[date], scope: Scope) -> DatedBill:
    """Read OpenAI's costs by line item, and its tokens by model and tier."""
    bill = DatedBill()
    span = [
        (name, str(int(moment.timestamp())))
        for name, moment in _span(days, "start_time", "end_time")
    ]
    limits = [*_each("project_ids[]", scope.projects), *_each("api_key_ids[]", scope.keys)]
    daily = [*span, ("bucket_width", "1d"), *limits]
    costs = [*daily, ("group_by[]", "line_item"), ("limit", "180")]
    for bucket in api.buckets("/v1/organization/costs", costs):
        for result in bucket["results"]:
            # Such as "gpt-5-2025-08-07, cached input".
            item = str(result.get("line_item") or "other").partition(", ")[0]
            paid = result["amount"]
            bill.charge(_unix_day(bucket), item, _amount(paid["value"]), paid["currency"])
    groups = _each("group_by[]", ("model", "batch", "service_tier"))
    usage = [*daily, *groups, ("limit", "31")]
    for bucket in api.buckets("/v1/organization/usage/completions", usage):
        for result in bucket["results"]:
            bill.use(_unix_day(bucket), str(result.get("model") or "other")).add(
                input=_count(result, "input_tokens"),
                cached=_count(result, "input_cached_tokens"),
                output=_count(result, "output_tokens"),
                tier="batch" if result.get("batch") else result.get("service_tier"),
                calls=_count(result, "num_model_requests"),
            )
    return bill


def anthropic_bill(api: UsageApi, days: set[date], scope: Scope) -> DatedBill:
    """Read Anthropic's costs by model, and its tokens by model and tier."""
    if scope.keys:
        raise ConfigError(
            "Anthropic's cost report is not split by keys", "--bill-project takes a workspace's id."
        )
    bill = DatedBill()
    span = [
        (name, moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
        for name, moment in _span(days, "starting_at", "ending_at")
    ]
    daily = [*span, ("bucket_width", "1d"), ("limit", "31"), ("group_by[]", "workspace_id")]

    def chosen(result: Mapping[str, Any]) -> bool:
        workspace = result.get("workspace_id") or DEFAULT_WORKSPACE
        return not scope.projects or workspace in scope.projects

    for bucket in api.buckets(
        "/v1/organizations/cost_report", [*daily, ("group_by[]", "description")]
    ):
        for result in filter(chosen, bucket["results"]):
            item = str(result.get("model") or result.get("description") or "other")
            # Amounts are texts, in cents and parts of them.
            cents = _amount(result["amount"])
            bill.charge(_iso_day(bucket), item, cents / 100, result["currency"])
    groups = _each("group_by[]", ("model", "service_tier"))
    for bucket in api.buckets("/v1/organizations/usage_report/messages", [*daily, *groups]):
        for result in filter(chosen, bucket["results"]):
            made = result.get("cache_creation") or {}
            cached = _count(result, "cache_read_input_tokens")
            written = sum(_count(made, name) for name in made)
            bill.use(_iso_day(bucket), str(result.get("model") or "other")).add(
                input=_count(result, "uncached_input_tokens") + cached + written,
                cached=cached,
                output=_count(result, "output_tokens"),
                tier=result.get("service_tier"),
            )
    return bill


def _span(days: Iterable[date], *names: str) -> Iterator[tuple[str, datetime]]:
    """Yield both names with the midnights in UTC before the first day and after the last."""
    ordered = sorted(days)
    ends = (ordered[0], ordered[-1] + timedelta(days=1))
    for name, day in zip(names, ends, strict=True):
        yield name, datetime.combine(day, time(), UTC)


def _each(name: str, values: Iterable[str]) -> Query:
    return [(name, value) for value in values]


def _amount(value: Any) -> Decimal:
    amount = Decimal(str(value))
    if not amount.is_finite():
        raise ValueError(f"{value!r} is no amount")
    return amount


def _count(result: Mapping[str, Any], name: str) -> int:
    return int(result.get(name) or 0)


def _unix_day(bucket: Mapping[str, Any]) -> date:
    return datetime.fromtimestamp(int(bucket["start_time"]), UTC).date()


def _iso_day(bucket: Mapping[str, Any]) -> date:
    return datetime.fromisoformat(str(bucket["starting_at"])).astimezone(UTC).date()


BILLS: dict[str, tuple[UsageApi, Callable[[UsageApi, set[date], Scope], DatedBill]]] = {
    "openai": (
        UsageApi(
            service="OpenAI",
            url="https://api.openai.com",
            variable="OPENAI_ADMIN_KEY",
            keys_at="https://platform.openai.com/settings/organization/admin-keys",
            headers=lambda key: {"Authorization": f"Bearer {key}"},
        ),
        openai_bill,
    ),
    "anthropic": (
        UsageApi(
            service="Anthropic",
            url="https://api.anthropic.com",
            variable="ANTHROPIC_ADMIN_KEY",
            keys_at="https://platform.claude.com/settings/admin-keys",
            headers=lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
        ),
        anthropic_bill,
    ),
}
"""The services whose bill the core reads, by the provider in receipts: address and reader."""


def read_bill(provider: str, days: set[date], scope: Scope) -> DatedBill:
    """Read a service's bill of some days; ConfigError where that fails, also for an answer that has
    another form than the documented one.
    """
    api, read = BILLS[provider]
    try:
        bill = read(api, days, scope)
    except ConfigError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"{api.service} sent a bill in an unknown form: {error!r}") from error
    uses = {key: use for key, use in bill.uses.items() if key[0] in days}
    foreign = {key: amount for key, amount in bill.foreign.items() if key[0] in days}
    return DatedBill(uses=uses, foreign=foreign)
