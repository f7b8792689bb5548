"""The order of scenarios, and functions that are tried again."""

from __future__ import annotations

import builtins
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.data.dataset import epoch_order, places


@given(
    size=st.integers(1, 20),
    per_step=st.integers(1, 25),
    epochs=st.integers(0, 3),
    seed=st.integers(),
    start=st.integers(0, 10),
)
def test_each_epoch_has_each_item_once_and_a_resume_the_same_batches(
    size, per_step, epochs, seed, start
):
    data = [f"s{n}" for n in range(size)]
    state = random.getstate()
    batches = list(art.iterate_dataset(data, per_step, epochs, use_tqdm=False, seed=seed))
    assert random.getstate() == state
    for epoch in range(epochs):
        of_epoch = [batch for batch in batches if batch.epoch == epoch]
        assert sorted(item for batch in of_epoch for item in batch.items) == sorted(data)
        assert [batch.epoch_step for batch in of_epoch] == list(range(len(of_epoch)))
    assert [batch.step for batch in batches] == list(range(len(batches)))
    rest = art.iterate_dataset(data, per_step, epochs, start, use_tqdm=False, seed=seed)
    assert list(rest) == batches[start:]


@given(size=st.integers(1, 9), start=st.integers(0, 30), count=st.integers(0, 30))
def test_places_go_on_over_epochs(size, start, count):
    found = list(places(size, start, start + count, seed=3))
    assert len(found) == count
    for place, (epoch, index) in enumerate(found, start):
        assert (epoch, index) == (place // size, epoch_order(size, place // size, 3)[place % size])


def test_orders_differ_by_seed_and_epoch():
    orders = [epoch_order(30, epoch, seed) for epoch in (0, 1) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_another_order_and_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("ART_PROGRESS", "lines")
    found = art.iterate_dataset("abc", 2, order=lambda size, epoch: range(size))
    assert [batch.items for batch in found] == [["a", "b"], ["c"]]
    assert "dataset: 100%" in capsys.readouterr().err


def test_an_empty_dataset_and_empty_batches():
    assert list(art.iterate_dataset([])) == []
    with pytest.raises(art.ConfigError, match="groups_per_step must be at least 1"):
        list(art.iterate_dataset("abc", 0))


async def test_a_function_is_tried_again_until_it_works(caplog):
    calls: list[int] = []

    @art.retry(max_attempts=3, delay=0.0)
    async def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("again")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert await flaky() == "done"
    assert caplog.messages == [f"attempt {n} of 3 failed: again" for n in (1, 2)]


def test_the_last_error_is_raised_and_others_at_once():
    seen: list[int] = []

    @art.retry(2, 0.0, exceptions=(ValueError,), on_retry=lambda _, attempt: seen.append(attempt))
    def broken(error: Exception) -> None:
        raise error

    with pytest.raises(ValueError, match="no"):
        broken(ValueError("no"))
    assert seen == [1]
    with pytest.raises(KeyError):
        broken(KeyError("no"))
    assert seen == [1]


def test_tenacity_is_named_where_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tenacity":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(art.ConfigError, match=r"needs tenacity") as caught:
        art.retry()
    assert "art-core[retry]" in str(caught.value)
