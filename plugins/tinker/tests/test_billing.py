"""The bill of a run: found by its tags among an organisation's usage, in pieces of whole hours."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tinker import types

import art_core as art
from art_core.cli.main import main as art_command
from art_tinker.billing import bill_of, spans, summed
from art_tinker.store import Identity

BILLS = hasattr(types, "BillingUsageResponse")
needs_bills = pytest.mark.skipif(not BILLS, reason="this SDK cannot ask for the bill")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event(kind, session, usd, **more):
    return {
        "bucket_start": NOON,
        "bucket_end": NOON + timedelta(hours=1),
        "session_id": session,
        "estimated_cost_usd": usd,
        "event_info": {"type": kind, **more},
    }


def answer(*events, run_id="mine"):
    tags = {"art_run_id": run_id, "art_split": "train"}
    return types.BillingUsageResponse.model_validate(
        {
            "data": list(events),
            "sessions": {
                "s1": {"user_metadata": tags},
                "s2": {"user_metadata": tags | {"art_split": "eval"}},
                "s3": {"user_metadata": tags | {"art_run_id": "another's"}},
                "s4": {},
            },
        }
    )


@needs_bills
def test_the_sessions_of_a_run_are_added_up_by_leaf():
    told = answer(
        event("training", "s1", 1.0, token_count=10),
        event("sampling_prefill", "s1", 0.25, token_count=10, cached=False),
        event("sampling_prefill", "s1", 0.05, token_count=10, cached=True),
        event("sampling_sample", "s2", 0.5, token_count=10),
        event("checkpoint", "s1", None, count=2),
        event("training", "s3", 99.0, token_count=10),
        event("training", "s4", 99.0, token_count=10),
        event("storage", None, 99.0, gigabyte_hours=1.0),
    )
    bill = summed([told, answer(event("training", "s1", 2.0, token_count=20))], "mine")
    assert bill.usd == pytest.approx(
        {
            "train/tinker_train": 3.0,
            "train/tinker_prefill": 0.3,
            "eval/tinker_sample": 0.5,
            "train/tinker_checkpoints": 0.0,
        }
    )
    assert bill.notes == ("usage until 2026-03-01 13:00 UTC",)


@needs_bills
def test_what_has_no_price_yet_is_said_and_checkpoints_never_have_one():
    told = answer(
        event("training", "s1", None, token_count=10), event("checkpoint", "s1", None, count=2)
    )
    (_, note) = summed([told], "mine").notes
    assert note.startswith("1 amounts have no price yet")


@needs_bills
def test_a_run_without_usage_says_so():
    assert summed([answer()], "mine") == art.Bill(usd={}, notes=("no usage is billed yet",))


def test_the_time_of_a_run_is_asked_for_in_whole_hours_and_two_weeks_at_most():
    since, until = NOON + timedelta(minutes=30), NOON + timedelta(days=15, minutes=5)
    assert list(spans(since, until)) == [
        (NOON, NOON + timedelta(days=14)),
        (NOON + timedelta(days=14), NOON + timedelta(days=15, hours=1)),
    ]


class Admin:
    """The SDK's client for the billing, as far as it is asked."""

    options: dict
    asked: tuple

    def __init__(self, **options):
        type(self).options = options

    def get_billing_usage(self, start, end):
        type(self).asked = (start, end)
        return answer(event("training", "s1", 1.0, token_count=1), run_id=self.run_id)


@needs_bills
def test_the_bill_of_a_run_is_asked_for_where_the_run_was(tmp_path, monkeypatch):
    identity = Identity.of(tmp_path, "http://127.0.0.1:1")
    monkeypatch.setattr(Admin, "run_id", identity.run_id, raising=False)
    monkeypatch.setattr("tinker.AdminClient", Admin)
    assert bill_of(tmp_path).usd == {"train/tinker_train": 1.0}
    assert Admin.options == {"base_url": "http://127.0.0.1:1"}
    start, end = Admin.asked
    assert start <= datetime.now(UTC) < end and end - start == timedelta(hours=1)


@needs_bills
async def test_the_command_puts_the_bill_beside_the_estimate(
    account, make_model, monkeypatch, capsys
):
    backend, model = art.backend("tinker"), make_model()
    await model.register(backend)
    model.metrics_builder("train").add_usage(
        "tinker_train",
        art.TokenUsage(train_tokens=100_000),
        provider="tinker",
        model_name="tiny/base",
    )
    await model.log(split="train", step=1)
    await model.close()
    await backend.close()
    identity = Identity.known(model.run_dir)
    monkeypatch.setattr(Admin, "run_id", identity.run_id, raising=False)
    monkeypatch.setattr("tinker.AdminClient", Admin)
    # the command has a loop of its own
    command = ["costs", str(model.run_dir), "--reconcile"]
    assert await asyncio.to_thread(art_command, command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "demo/agent at tinker  estimate $  billed $  difference",
        "train/tinker_train      0.500000  1.000000   +0.500000",
        "all                     0.500000  1.000000   +0.500000",
        "usage until 2026-03-01 13:00 UTC",
    ]


def test_a_run_that_was_never_at_tinker_has_no_bill(tmp_path):
    with pytest.raises(art.ConfigError, match="was never at Tinker"):
        bill_of(tmp_path)


def test_an_sdk_that_can_not_ask_is_named(tmp_path, monkeypatch):
    Identity.of(tmp_path, None)
    monkeypatch.delattr("tinker.AdminClient", raising=False)
    with pytest.raises(art.ConfigError, match="AdminClient"):
        bill_of(tmp_path)
