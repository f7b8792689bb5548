from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import attrs
import orjson
import pytest
from billing_server import (
    ADMIN_KEY,
    anthropic_cost,
    anthropic_tokens,
    billing_server,
    openai_cost,
    openai_tokens,
)

import art_core as art
from art_core.cli import reconcile
from art_core.reports import bills

COSTS, COMPLETIONS = "/v1/organization/costs", "/v1/organization/usage/completions"
REPORT, MESSAGES = "/v1/organizations/cost_report", "/v1/organizations/usage_report/messages"

DEARER = "the same tokens at another price: art prices check"
OTHERS = "2,000 more tokens billed: other programs' calls"
OF_ALL = (
    "billed is all use of the organization at openai, also by other programs: "
    "--bill-project ID or --bill-key ID limit it"
)

STEP = {
    "costs/gpu": 1.0,
    "costs/train/sample": 0.5,
    "costs/all": 1.5,
    "costs/cum/gpu": 1.0,
    "costs/cum/train/sample": 0.5,
    "costs/cum/train": 0.5,
    "costs/cum/all": 1.5,
}
SAMPLED = {"leaf": "costs/train/sample", "item": "m", "provider": "cloud", "usd": 0.5}


class Cloud:
    """A plugin whose service billed a little more than was estimated, and storage on top."""

    def __init__(self):
        self.asked = []

    def bill(self, run_dir):
        self.asked.append(run_dir)
        usd = {"train/sample": 0.52, "train/storage": 0.01}
        return art.Bill(usd=usd, notes=("usage until noon",))

    @art.hookimpl
    def art_backends(self):
        return [
            art.BackendSpec(name="cloud", create=dict, summary="billed", bill=self.bill),
            art.BackendSpec(name="near", create=dict, summary="free"),
        ]


def a_run(shelf, *receipts):
    directory = shelf.run("a", STEP)
    log = directory / "history.jsonl"
    log.write_bytes(orjson.dumps(orjson.loads(log.read_bytes()) | {"_receipts": receipts}) + b"\n")
    return directory


def test_the_estimate_stands_beside_the_bill(shelf, art_command):
    cloud, directory = Cloud(), a_run(shelf, SAMPLED)
    printed = art_command("costs", "a", "--reconcile", plugins={"cloud": cloud})
    assert printed.splitlines() == [
        "demo/a at cloud  estimate $  billed $  difference",
        "train/sample       0.500000  0.520000   +0.020000",
        "train/storage      0.000000  0.010000   +0.010000",
        "all                0.500000  0.530000   +0.030000",
        "usage until noon",
    ]
    assert cloud.asked == [directory]


def test_a_run_that_paid_no_service_that_tells_its_bill_is_an_error(shelf, art_error):
    a_run(shelf, SAMPLED | {"provider": "acme"})
    error = art_error("costs", "a", "--reconcile", plugins={"cloud": Cloud()})
    assert "demo/a" in error
    assert "(used: acme; services that do: cloud, openai, anthropic)" in error


@pytest.fixture
def server(monkeypatch):
    """Both services at an address of this machine, with an admin key, on 2026-11-22."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 22, 13, 0, tzinfo=UTC)

    monkeypatch.setattr(reconcile, "datetime", Clock)
    with billing_server() as server:
        for name, (api, read) in list(bills.BILLS.items()):
            monkeypatch.setenv(api.variable, ADMIN_KEY)
            monkeypatch.setitem(bills.BILLS, name, (attrs.evolve(api, url=server.url), read))
        yield server


@pytest.fixture
def log(shelf):
    """Write rows with receipts, each at a time of November 2026; a row lasted some seconds."""
    directory = shelf.run("a")
    lines = []

    def add(day, hour, *receipts, lasted=60.0, zone=UTC):
        row = art.MetricsRow(
            seq=len(lines) + 1,
            attempt=1,
            step=len(lines) + 1,
            split="train",
            recorded_at=datetime(2026, 11, day, hour, 0, tzinfo=zone),
            metrics={"reward/mean": 1.0, "time/step_wall_s": lasted},
            receipts=receipts,
        )
        lines.append(row.to_line())
        (directory / "history.jsonl").write_bytes(b"".join(lines))

    return add


def called(item="gpt-5", usd=1.0, provider="openai", **others):
    """A receipt of 1,000 tokens."""
    call = {"leaf": "costs/train/judge", "item": item, "provider": provider, "usd": usd}
    return call | {"calls": 2, "input_tokens": 900, "output_tokens": 100} | others


def counted(model="gpt-5-2025-08-07", **others):
    """The same tokens as the service counts them."""
    return openai_tokens(model, input_tokens=900, output_tokens=100, **others)


@pytest.fixture
def bill(art_command):
    """Return the rows of the bill by (day, model), as (estimate, billed, reason), and the notes."""

    def read(*options):
        found = json.loads(art_command("costs", "a", "--reconcile", *options, "--json"))
        rows = {
            (row["day"] and int(row["day"][-2:]), row["path"]): (
                round(row["estimate_usd"], 9),
                round(row["billed_usd"], 9),
                row["reason"],
            )
            for row in found["bills"]
        }
        return rows, found["notes"]

    return read


def test_a_bill_stands_beside_the_estimate_by_day_and_model(server, log, art_command):
    log(19, 12)
    log(20, 12, called(), called("gpt-5-mini", 0.1))
    log(21, 12, called("openai/gpt-5-2025-08-07"))
    for day in ("2026-11-20", "2026-11-21"):
        server.add(COSTS, day, openai_cost("gpt-5-2025-08-07, input", 0.4))
        server.add(COSTS, day, openai_cost("gpt-5-2025-08-07, output", 0.6))
        server.add(COMPLETIONS, day, counted())
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5-mini-2025-08-07, input", 0.12))
    server.add(COMPLETIONS, "2026-11-20", counted("gpt-5-mini-2025-08-07"))
    printed = art_command("costs", "a", "--reconcile")
    assert [" ".join(line.split()) for line in printed.splitlines()] == [
        "demo/a at openai day, UTC estimate $ billed $ difference reason",
        "gpt-5 2026-11-20 1.000000 1.000000 +0.000000",
        f"gpt-5-mini 2026-11-20 0.100000 0.120000 +0.020000 {DEARER}",
        "gpt-5 2026-11-21 1.000000 1.000000 +0.000000",
        "all 2.100000 2.120000 +0.020000",
        OF_ALL,
    ]


def reason(bill, day=20):
    rows, _ = bill()
    return next(row[2] for (at, model), row in rows.items() if at == day and model != "all")


@pytest.mark.parametrize(
    ("receipt", "tokens", "why"),
    [
        (called(usd=None), counted(), "2 calls without a price here"),
        (called(unread=("x",)), counted(), "2 calls priced in part here"),
        (called(web_searches=1), counted(), "searches are an item of their own in the bill"),
        (called(), openai_tokens("gpt-5", input_tokens=3000), OTHERS),
        (called(), openai_tokens("gpt-5", input_tokens=300), "700 tokens are not in the bill"),
        (called(), counted(input_cached_tokens=500), "cached tokens: 500 billed, 0 here"),
        (called(), counted(service_tier="flex"), "tiers billed: flex 1,000"),
        (called(), openai_tokens("gpt-6"), "the service counts no tokens of it"),
        (called(usd=2.0), counted(), ""),
    ],
)  # fmt: skip
def test_a_difference_has_its_reason_where_it_is_known(server, log, bill, receipt, tokens, why):
    log(20, 12, receipt)
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5-2025-08-07, input", 2.0))
    server.add(COMPLETIONS, "2026-11-20", tokens)
    assert reason(bill) == why


def test_a_day_that_is_not_over_is_stated(server, log, bill):
    log(22, 12, called())
    server.add(COSTS, "2026-11-22", openai_cost("gpt-5, input", 0.5))
    server.add(COMPLETIONS, "2026-11-22", openai_tokens("gpt-5", input_tokens=500))
    rows, notes = bill()
    why = "the day is not complete; 500 tokens are not in the bill"
    assert rows[22, "gpt-5"] == (1.0, 0.5, why)
    assert "2026-11-22 is not complete: ask again after midnight UTC" in notes


def test_days_are_those_of_utc_and_a_row_may_begin_on_the_day_before(server, log, bill):
    # Half past midnight in Kolkata is the evening before in UTC.
    log(21, 1, called(), zone=timezone_of(5.5))
    log(21, 0, called(), lasted=7200.0)
    for day, usd in (("2026-11-20", 1.5), ("2026-11-21", 0.5)):
        server.add(COSTS, day, openai_cost("gpt-5, input", usd))
    rows, notes = bill()
    assert rows[20, "gpt-5"][:2] == (1.0, 1.5)
    assert rows[21, "gpt-5"][:2] == (1.0, 0.5)
    assert rows[None, "all"][:2] == (2.0, 2.0)
    midnight = "rows that began before midnight UTC: 1; all their calls count on the day of the row"
    assert midnight in notes


def timezone_of(hours):
    from datetime import timezone

    return timezone(timedelta(hours=hours))


def test_other_items_and_currencies_are_named_and_in_no_sum(server, log, bill):
    log(20, 12, called())
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5, input", 1.0), openai_cost("o3, input", 3.5))
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5, input", "2.50", "eur"))
    rows, notes = bill()
    assert rows[None, "all"][:2] == (1.0, 1.0)
    assert "$3.500000 of the bill is of other items on these days: o3" in notes
    assert "2.50 EUR of 2026-11-20 are in no sum: estimates are in US dollars" in notes


def test_a_bill_of_a_part_of_the_organization_is_stated_as_such(server, log, bill, art_error):
    log(20, 12, called())
    _, notes = bill("--bill-project", "proj_1", "--bill-key", "key_1")
    note = "billed is all use of project proj_1 and key key_1, also by other programs"
    assert notes[0] == note
    assert server.requests[0][1]["project_ids[]"] == ["proj_1"]
    error = art_error("costs", "a", "--bill-project", "proj_1")
    assert "--bill-project and --bill-key need --reconcile" in error


def test_anthropic_leaves_out_its_priority_tier(server, log, bill):
    log(20, 12, called("claude-opus-5", provider="anthropic"))
    log(20, 13, called("claude-opus-5", provider="anthropic", tier="priority"))
    log(21, 12, called("claude-opus-5", provider="anthropic"))
    for day in ("2026-11-20", "2026-11-21"):
        server.add(REPORT, day, anthropic_cost("claude-opus-5-20261001", "100.00"))
    for tier in ("standard", "priority"):
        tokens = {"uncached_input_tokens": 900, "output_tokens": 100, "service_tier": tier}
        server.add(MESSAGES, "2026-11-20", anthropic_tokens("claude-opus-5-20261001", **tokens))
    assert bill()[0] == {
        (20, "claude-opus-5"): (2.0, 1.0, "the bill leaves out the tier priority"),
        (21, "claude-opus-5"): (1.0, 1.0, ""),
        (None, "all"): (3.0, 2.0, ""),
    }


def test_a_service_that_fails_is_a_note_beside_the_bill_of_the_other(server, log, bill, art_error):
    log(20, 12, called(), called("claude-opus-5", provider="anthropic"))
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5, input", 1.0))
    server.add(COMPLETIONS, "2026-11-20", counted())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANTHROPIC_ADMIN_KEY")
        rows, notes = bill()
        assert list(rows) == [(20, "gpt-5"), (None, "all")]
        assert (
            "the bill of Anthropic needs an admin key, and ANTHROPIC_ADMIN_KEY is not set"
            in (notes[-1])
        )
        patch.delenv("OPENAI_ADMIN_KEY")
        assert "ANTHROPIC_ADMIN_KEY is not set" in art_error("costs", "a", "--reconcile")


def test_no_key_is_printed_or_stored(server, log, art_status, tmp_path):
    log(20, 12, called(), called("claude-opus-5", provider="anthropic"))
    server.failures.append((403, {}, {"error": {"message": f"{ADMIN_KEY} may not"}}))
    _, printed, errors = art_status("costs", "a", "--reconcile")
    assert ADMIN_KEY not in printed + errors
    assert "... may not" in printed
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not any(ADMIN_KEY.encode() in path.read_bytes() for path in kept)
