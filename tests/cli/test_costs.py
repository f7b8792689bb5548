from __future__ import annotations

import orjson
import pytest

STEP = {
    "reward/mean": 0.25,
    "costs/gpu": 1.0,
    "costs/train/judge": 0.5,
    "costs/train": 0.5,
    "costs/all": 1.5,
    "costs/cum/gpu": 1.0,
    "costs/cum/train/judge": 0.5,
    "costs/cum/train": 0.5,
    "costs/cum/all": 1.5,
}
NEXT = {
    "reward/mean": 0.75,
    "costs/gpu": 0.5,
    "costs/all": 0.5,
    **{key: usd for key, usd in STEP.items() if "/cum/" in key},
    "costs/cum/gpu": 1.5,
    "costs/cum/all": 2.0,
}


def give_receipts(directory, *receipts):
    log = directory / "history.jsonl"
    first, *rest = log.read_bytes().splitlines(keepends=True)
    row = orjson.loads(first) | {"_receipts": receipts}
    log.write_bytes(b"".join([orjson.dumps(row) + b"\n", *rest]))


def lines(printed):
    return [line.split() for line in printed.splitlines()]


def test_the_tree_has_shares_and_what_a_step_cost(shelf, art_command):
    shelf.run("a", STEP, NEXT)
    assert art_command("costs", "a").splitlines()[:5] == [
        "costs of demo/a         $  share  $ a step",
        "all              2.000000   100%  1.000000",
        "├─ gpu           1.500000    75%  0.750000",
        "└─ train         0.500000    25%  0.250000",
        "   └─ judge      0.500000    25%  0.250000",
    ]


def test_what_a_point_of_reward_cost_says_how_it_is_computed(shelf, art_command):
    shelf.run("a", STEP, NEXT)
    *_, values, price = art_command("costs", "a").splitlines()
    assert values == "reward/mean: first 0.25, newest 0.75, best 0.75"
    assert price == (
        "one point of reward cost $4: all costs / (the newest - the first) = 2 / (0.75 - 0.25)"
    )


def test_a_best_reward_that_was_lost_again_has_a_price_of_its_own(shelf, art_command):
    shelf.run("a", STEP, NEXT, {"reward/mean": 0.25})
    *_, newest, best = art_command("costs", "a").splitlines()
    assert newest == "reward did not improve between the first and the newest value"
    assert best.startswith("one point of reward cost $4: all costs / (the best - the first)")


def test_a_run_without_rewards_says_nothing_of_them(shelf, art_command):
    shelf.run("a", {"costs/gpu": 1.0, "costs/all": 1.0, "costs/cum/all": 1.0, "costs/cum/gpu": 1.0})
    assert "reward" not in art_command("costs", "a")


def test_one_step_stands_beside_the_whole_run(shelf, art_command):
    shelf.run("a", STEP, NEXT)
    assert lines(art_command("costs", "a", "--step", "2"))[1:] == [
        ["all", "0.500000", "100%", "2.000000"],
        ["└─", "gpu", "0.500000", "100%", "1.500000"],
    ]


def test_a_step_that_cost_nothing_and_one_that_never_was(shelf, art_command, art_error):
    shelf.run("a", {"reward/mean": 0.5})
    shelf.run("empty")
    assert art_command("costs", "a", "--step", "1") == "step 1 cost nothing\n"
    assert "no row of step 7; logged: 1 to 1" in art_error("costs", "a", "--step", "7")
    assert "logged: none" in art_error("costs", "empty", "--step", "7")


def test_each_step_is_a_line_with_the_sum_so_far(shelf, art_command):
    shelf.run("a", STEP, NEXT)
    assert lines(art_command("costs", "a", "--per-step")) == [
        ["step", "$", "$", "so", "far", "gpu", "train"],
        ["1", "1.500000", "1.500000", "1.000000", "0.500000"],
        ["2", "0.500000", "2.000000", "0.500000", "0.000000"],
    ]


def test_costs_that_are_named_like_columns_stay_costs(shelf, art_command):
    costs = {"costs/step": 1.0, "costs/usd": 2.0, "costs/": 3.0, "costs/all": 6.0}
    shelf.run("a", costs)
    assert lines(art_command("costs", "a", "--per-step")) == [
        ["step", "$", "$", "so", "far", "step", "usd"],
        ["1", "6.000000", "6.000000", "1.000000", "2.000000"],
    ]
    (step,) = orjson.loads(art_command("costs", "a", "--per-step", "--json"))["steps"]
    assert (step["step"], step["usd"], step["costs"]["usd"]) == (1, 6.0, 2.0)


def test_what_was_bought_is_told_with_its_price_and_its_source(shelf, art_command):
    directory = shelf.run("a", STEP)
    rates = {"input_per_million": 1.5, "output_per_million": 2, "source": "book"}
    call = {"leaf": "costs/train/judge", "item": "m", "provider": "p", "calls": 3}
    give_receipts(
        directory,
        {**call, "input_tokens": 10, "output_tokens": 4, "tier": "flex", "usd": 0.5,
         "rates": rates},
        {**call, "usd": 0.25, "reported": True},
        {"leaf": "costs/gpu", "item": "card", "device_seconds": 1800, "usd": 1.0,
         "rates": {"usd_per_hour": 2.0}},
    )  # fmt: skip
    bought = lines(art_command("costs", "a"))[6:10]
    assert bought == [
        ["bought", "for", "calls", "tokens", "in", "out", "hours", "$", "price", "source"],
        ["card", "gpu", "0.5000", "1.000000", "2", "an", "hour", "-"],
        ["p/m", "(flex)", "train/judge", "3", "10", "4", "0.500000", "input", "1.5,", "output",
         "2", "a", "million", "book"],
        ["p/m", "train/judge", "3", "0", "0", "0.250000", "named", "by", "the", "provider", "-"],
    ]  # fmt: skip


def test_what_a_web_search_cost_is_told_where_there_was_one(shelf, art_command):
    directory = shelf.run("a", STEP)
    rates = {"input_per_million": 3, "web_search_per_thousand": 10, "source": "book"}
    call = {"leaf": "costs/train/judge", "item": "m", "provider": "p", "usd": 0.5, "rates": rates}
    give_receipts(directory, {**call, "tier": "batch"}, {**call, "web_searches": 3})
    bought = [" ".join(line) for line in lines(art_command("costs", "a"))]
    assert any(line.endswith(" input 3 a million book") for line in bought)
    assert any(line.endswith(" input 3 a million, 0.01 a web search book") for line in bought)


@pytest.mark.parametrize("row", [STEP, {"reward/mean": 0.5}])
def test_unpriced_calls_are_listed_with_their_tokens(shelf, art_command, row):
    directory = shelf.run("a", row)
    give_receipts(
        directory,
        {"leaf": "costs/train/j", "item": "m", "provider": "p", "calls": 2, "input_tokens": 9},
    )
    printed = art_command("costs", "a")
    assert ["p/m", "train/j", "2", "9", "0"] in lines(printed)
    assert "these are in no cost above: art reprice RUN --prices FILE.json" in printed


def test_unpriced_calls_without_receipts_are_counted(shelf, art_command):
    shelf.run("a", {"data/step_unpriced_calls": 3.0})
    printed = art_command("costs", "a")
    assert printed == "no costs were recorded\n\n3 unpriced calls are in no cost above\n"


def test_calls_that_are_priced_in_part_are_listed_with_what_is_missing(shelf, art_command):
    directory = shelf.run("a", STEP | {"data/step_partly_priced_calls": 2.0})
    give_receipts(
        directory,
        {"leaf": "costs/train/j", "item": "m", "provider": "p", "calls": 2, "usd": 0.5,
         "speed": "fast", "geography": "us", "unread": ["usage.pages", "web_searches"]},
    )  # fmt: skip
    printed = art_command("costs", "a")
    assert "p/m (fast, us)  train/j      2          0    0" in printed
    assert "usage.pages, web_searches" in " ".join(printed.split())
    assert "2 calls cost more than is in the sums above" in printed


def test_prices_that_were_old_when_they_were_used_are_named(shelf, art_command):
    directory = shelf.run("a", STEP)
    used = {"leaf": "costs/gpu", "device_seconds": 1800, "usd": 1.0}
    give_receipts(
        directory,
        {**used, "item": "new", "rates": {"usd_per_hour": 2.0, "as_of": "2026-01-01"}},
        {**used, "item": "old", "rates": {"usd_per_hour": 2.0, "as_of": "2025-12"}},
    )
    printed = " ".join(art_command("costs", "a").split())
    assert "prices of lists that were more than 60 days old: old (2025-12). art prices" in printed


def test_an_evaluation_before_training_is_no_step_to_divide_by(shelf, art_command):
    directory = shelf.run("a", STEP, NEXT)
    log = directory / "history.jsonl"
    first = log.read_bytes().splitlines(keepends=True)[0]
    val = orjson.loads(first) | {"step": 0, "split": "val"}
    log.write_bytes(orjson.dumps(val) + b"\n" + log.read_bytes())
    assert lines(art_command("costs", "a"))[1] == ["all", "2.000000", "100%", "1.000000"]


def test_a_model_that_is_named_with_its_provider_is_so_named_once(shelf, art_command):
    call = {"leaf": "costs/train/j", "provider": "openai", "usd": 1.0}
    give_receipts(shelf.run("a", STEP), call | {"item": "openai/gpt-4.1"}, call | {"item": "x/y"})
    printed = art_command("costs", "a")
    assert "openai/openai" not in printed
    assert "openai/gpt-4.1" in printed and "openai/x/y" in printed


def test_a_receipt_with_null_counts_is_shown_and_repriced(shelf, art_command):
    call = {"leaf": "costs/train/j", "item": "m", "calls": None, "input_tokens": None, "usd": 0.5}
    odd = {"leaf": "costs/gpu", "item": "card", "device_seconds": 9, "usd": 1.0}
    rates = {"rates": {"usd_per_hour": "?", "input_per_million": None}}
    none = {"leaf": "costs/train/j", "item": "n", "calls": 0, "input_tokens": 5}
    give_receipts(shelf.run("a", STEP), call, odd | rates, none, 7)
    printed = art_command("costs", "a")
    assert ["m", "train/j", "1", "0", "0", "0.500000", "a", "million", "-"] in lines(printed)
    assert printed.splitlines()[-4] == "1 receipt can't be read: not among what was bought"
    assert ["costs/gpu", "1.000000", "1.000000", "0.0%"] in lines(art_command("reprice", "a"))
