from __future__ import annotations

import attrs
import pytest

from art_core.log.reader import LoggedRun
from art_core.metrics.receipt import Receipt
from art_core.reports.costs import read_costs


def report(log):
    return read_costs(LoggedRun(log.path.parent))


def call(usd, calls=1, tokens=10):
    rates = {"input_per_million": 1.0} if usd is not None else {}
    return Receipt(
        leaf="costs/train/j", item="m", provider="p", calls=calls, input_tokens=tokens, usd=usd,
        rates=rates,
    )  # fmt: skip


def test_a_step_counts_all_its_rows_and_the_total_is_the_newest_sum(log):
    log.add(step=1, costs__gpu=1.0, costs__all=1.0, costs__cum__all=1.0, costs__cum__gpu=1.0)
    log.add(step=1, split="val", costs__all=0.5, costs__cum__all=1.5)
    log.add(step=2, reward__mean=0.5)
    found = report(log)
    assert found.steps == {1: {"gpu": 1.0, "all": 1.5}, 2: {}}
    assert found.total == {"all": 1.5, "gpu": 1.0}


def test_receipts_of_one_kind_add_up_over_the_run_dearest_first(log):
    log.add(receipts=[call(0.25), call(None)])
    log.add(receipts=[call(0.5), call(None, calls=2)])
    other = Receipt(leaf="costs/gpu", item="card", device_seconds=5.0, usd=3.0)
    log.add(receipts=[other], data__step_unpriced_calls=2.0)
    found = report(log)
    assert [(r.item, r.usd) for r in found.priced()] == [("card", 3.0), ("m", 0.75)]
    (unpriced,) = found.unpriced()
    assert (unpriced.calls, unpriced.input_tokens) == (3, 20)
    assert found.unpriced_calls == 2.0


def test_a_receipt_of_a_later_release_is_left_out(log):
    log.raw(
        b'{"step":1,"recorded_at":"2026-01-01T00:00:00","_receipts":[{"leaf":"x","item":"y","z":1}]}\n'
    )
    assert report(log).bought == {}


def test_what_the_reward_cost_is_all_dollars_over_the_gain(log):
    for reward, so_far in ((0.25, 1.0), (0.75, 2.0), (0.5, 4.0)):
        log.add(reward__mean=reward, costs__cum__all=so_far)
    price = report(log).reward_price()
    assert (price.key, price.first, price.last, price.best) == ("reward/mean", 0.25, 0.5, 0.75)
    assert (price.per_point_last, price.per_point_best) == (16.0, 8.0)


def test_where_nothing_was_gained_a_point_has_no_price(log):
    log.add(val__reward=0.5, costs__cum__all=1.0)
    price = report(log).reward_price()
    assert (price.key, price.per_point_last, price.per_point_best) == ("val/reward", None, None)


def test_a_run_without_rewards_has_no_price_of_them(log):
    log.add(costs__cum__all=1.0)
    assert report(log).reward_price() is None


def test_trained_steps_are_those_with_a_row_of_their_own_on_train(log):
    log.add(step=0, split="val", val__reward=0.1)
    log.add(step=0, costs__train__judge=1.0)
    for step in (1, 2, 2):
        log.add(step=step, costs__gpu=1.0)
    log.add(step=3, split="val", val__reward=0.2)
    assert report(log).trained == {1, 2}


def test_a_step_0_with_rewards_on_train_was_trained(log):
    log.add(step=0, reward__mean=0.5)
    assert report(log).trained == {0}


def test_rows_that_art_wrote_are_known_by_reward_or_loss(log):
    when = b'"recorded_at":"2026-01-01T00:00:00"'
    log.raw(b'{"training_step":1,"train/reward":0.5,%b}\n' % when)
    log.raw(b'{"training_step":2,"val/reward":0.5,%b}\n' % when)
    assert report(log).trained == {1}


def test_without_trained_steps_there_is_no_cost_of_one(log):
    log.add(step=0, split="val", costs__cum__all=1.0)
    found = report(log)
    assert found.per_trained_step(1.0) is None
    log.add(step=1, reward__mean=1.0)
    assert report(log).per_trained_step(1.0) == 1.0


@pytest.mark.parametrize(
    "stored",
    [
        b'{"leaf":"costs/gpu","item":"card","calls":"many"}',
        b'{"leaf":"costs/gpu","item":"card","usd":"1"}',
        b'{"leaf":"costs/gpu","item":"card","input_tokens":-1}',
        b'{"leaf":"costs/gpu","item":"card","input_tokens":1.5}',
        b'{"leaf":"costs/gpu","item":"card","rates":[1]}',
        b'{"leaf":5,"item":"card"}',
        b'{"item":"card"}',
        b"7",
        b"null",
    ],
)
def test_a_receipt_that_cannot_be_read_is_counted(log, stored):
    log.raw(b'{"step":1,"recorded_at":"2026-01-01T00:00:00","_receipts":[%b]}\n' % stored)
    found = report(log)
    assert (found.bought, found.unread_receipts) == ({}, 1)


def test_a_null_in_a_receipt_is_its_default(log):
    names = [
        b'"%b":null' % f.name.encode()
        for f in attrs.fields(Receipt)
        if f.name not in ("leaf", "item")
    ]
    stored = b'{"leaf":"costs/gpu","item":"card",%b}' % b",".join(names)
    log.raw(b'{"step":1,"recorded_at":"2026-01-01T00:00:00","_receipts":[%b]}\n' % stored)
    assert report(log).unpriced() == [Receipt(leaf="costs/gpu", item="card")]
