import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.base.errors import ConfigError, MetricError
from art_core.costs import builder as module
from art_core.costs.builder import MetricsBuilder, PriceBook, active_builder
from art_core.costs.ledger import Ledger, clear_in_child, warn_of_costs_left
from art_core.metrics.receipt import TokenUsage
from art_core.metrics.taxonomy import MetricSpec, builtin_taxonomy


@pytest.fixture
def ledger():
    extra = [
        MetricSpec(key="data/vocabulary", unit="token", help="size", combine="same"),
        MetricSpec(key="data/position", unit="row", help="where the data stands", combine="last"),
    ]
    return Ledger(builtin_taxonomy().extended(extra))


@pytest.fixture
def build(ledger):
    prices = PriceBook(art.Plugins())
    return lambda context="": MetricsBuilder(ledger, prices, context)


def take(ledger, split="train"):
    """Take what waits, for a row that is written."""
    with ledger.taking(split, SimpleNamespace(last=None)) as drained:
        return drained


def flush(ledger, split="train"):
    leaves, nonfinite = take(ledger, split).combined(ledger.taxonomy)
    assert not nonfinite
    return leaves


def test_costs_times_and_counts_add_up_and_others_are_averaged(build, ledger):
    builder = build()
    builder.add_cost("train/judge", 0.25)
    builder.add_cost("costs/train/judge", 0.5)
    builder.add_metric("time/step_actor_s", 1.0)
    builder.add_metric("time/step_actor_s", 2.0)
    builder.add_metric("loss/train", 1.0)
    builder.add_metric("loss/train", 2.0)
    builder.add_metric("data/position", 10)
    builder.add_metric("data/position", 20)
    builder.add_metric("data/vocabulary", 260)
    builder.add_metric("data/vocabulary", 260)
    builder.add_metric("own", 3)
    assert flush(ledger) == {
        "costs/train/judge": 0.75,
        "time/step_actor_s": 3.0,
        "loss/train": 1.5,
        "data/position": 20.0,
        "data/vocabulary": 260.0,
        "train/own": 3.0,
    }
    assert not ledger.waiting


def test_samples_whose_sum_no_float_can_hold_stand_in_no_rows_way(build, ledger):
    for _ in range(2):
        build().add_metric("loss/train", 1e308)
    assert flush(ledger) == {"loss/train": float("inf")}


def test_unequal_samples_of_a_metric_that_must_be_the_same_are_an_error(build, ledger):
    build().add_metric("data/vocabulary", 260)
    with pytest.raises(MetricError, match="must be the same throughout a step"):
        build().add_metric("data/vocabulary", 261)
    assert flush(ledger) == {"data/vocabulary": 260.0}


@pytest.mark.parametrize(("first", "second"), [("train", "train/judge"), ("train/judge", "train")])
def test_a_cost_that_could_not_stand_in_a_row_is_refused_where_it_is_added(
    build, ledger, first, second
):
    build().add_metric(f"costs/{first}", 1.0)
    with pytest.raises(MetricError, match="cost 'costs/train"):
        build().add_cost(second, 1.0)
    assert flush(ledger) == {f"costs/{first}": 1.0}


def test_the_leaves_of_a_run_that_goes_on_are_known(build, ledger):
    ledger.add_logged_costs(
        {"costs/cum/train/judge": 1.0, "costs/cum/train": 1.0, "costs/cum/all": 1.0}
    )
    build().add_cost("train/judge", 1.0)
    with pytest.raises(MetricError, match="sum of the costs below it"):
        build().add_cost("train", 1.0)


@pytest.mark.parametrize(
    ("added", "logged", "booked"),
    [
        ("train/judge", {"train/judge/style"}, "train/judge/other"),
        ("train/judge", {"train/judge/style", "train/judge/other/x"}, "train/judge/other/other"),
        ("train/judge/style", {"train/judge"}, "train/judge"),
        ("train/judge", {"train/judge"}, "train/judge"),
    ],
)
def test_what_was_added_before_the_log_was_known_moves_to_a_leaf_that_fits(
    build, ledger, caplog, added, logged, booked
):
    build().register_model_pricing("m", prompt_per_million=1.0, completion_per_million=1.0)
    usage = TokenUsage(input_tokens=1_000_000)
    for context in ("train", "train", ""):
        source = added.removeprefix("train/")
        build(context).add_usage(source, usage, provider="acme", model_name="m")
    build().add_cost("gpu", 0.5)
    ledger.add_logged_costs({f"costs/cum/{leaf}": 1.0 for leaf in logged})
    taken = take(ledger, "train")
    assert taken.combined(ledger.taxonomy)[0] == {f"costs/{booked}": 3.0, "costs/gpu": 0.5}
    assert [(r.leaf, r.calls, r.usd) for r in taken.receipts] == [(f"costs/{booked}", 3, 3.0)]
    for leaf in (*logged, booked, "gpu"):
        build().add_cost(leaf, 1.0)
    if added == booked:
        assert not caplog.text
    else:
        assert caplog.text.count(f"cost 'costs/{added}' conflicts with those in the run's log") == 1
        with pytest.raises(MetricError, match=f"cost 'costs/{added}'"):
            build().add_cost(added, 1.0)


def test_what_comes_into_no_row_any_more_is_said_once(build, ledger, caplog):
    ledger.close()
    build().add_metric("time/step_wall_s", 1.0)
    assert not caplog.text
    for _ in range(2):
        build().add_cost("train/judge", 0.25)
    assert caplog.text.count("the run is closed") == 1
    assert "{'costs/train/judge': 0.25}" in caplog.text


@pytest.mark.parametrize(
    ("before", "source", "booked"),
    [("train/judge", "judge/style", "judge"), ("train/judge/style", "judge", "judge/other")],
)
def test_what_is_paid_already_is_booked_where_it_fits_and_said_once(
    build, ledger, caplog, before, source, booked
):
    build().add_cost(before, 1.0)
    build().register_model_pricing("m", prompt_per_million=1.0, completion_per_million=1.0)
    usage = TokenUsage(input_tokens=1_000_000)
    for _ in range(2):
        build("train").add_usage(source, usage, provider="acme", model_name="m")
    taken = take(ledger, "train")
    assert sum(taken.combined(ledger.taxonomy)[0].values()) == 3.0
    assert [(r.leaf, r.calls, r.usd) for r in taken.receipts] == [(f"costs/train/{booked}", 2, 2.0)]
    assert caplog.text.count(f"it is booked at 'costs/train/{booked}'") == 1
    with pytest.raises(MetricError, match="is reserved"):
        build("all").add_usage("judge", usage, provider="acme", model_name="m")


def test_device_time_is_booked_beside_costs_below_the_device(build, ledger):
    build().add_cost("gpu/idle", 1.0)
    build().add_gpu_time(art.GpuTime(device="card", seconds=3600, usd_per_hour=2.0))
    assert flush(ledger) == {"costs/gpu/idle": 1.0, "costs/gpu/other": 2.0}


@pytest.mark.usefixtures("threads_in_turn")
def test_a_cost_and_its_receipt_stand_in_one_row(build, ledger):
    build().register_model_pricing("m", prompt_per_million=1.0, completion_per_million=1.0)
    usage = TokenUsage(input_tokens=1_000_000)
    rows, done = [], threading.Event()

    def log_rows():
        while not done.is_set():
            rows.append(take(ledger, "train"))

    def buy():
        for _ in range(500):
            build("train").add_usage("judge", usage, provider="acme", model_name="m")

    with ThreadPoolExecutor(5) as pool:
        pool.submit(log_rows)
        for buyer in [pool.submit(buy) for _ in range(3)]:
            buyer.result()
        done.set()
    rows.append(take(ledger, "train"))
    booked = [sum(row.combined(ledger.taxonomy)[0].values()) for row in rows]
    assert sum(booked) == 1_500.0
    assert booked == [sum(receipt.usd for receipt in row.receipts) for row in rows]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_a_forked_process_adds_is_said_there_and_stays_out_of_the_parents_rows(
    build, ledger, caplog
):
    build().add_cost("train/judge", 0.25)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in another process
        build().add_cost("train/tool", 0.5)
        os.write(writing, caplog.text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    assert "forked from the one that logs" in text
    assert "{'costs/train/tool': 0.5}" in text
    assert flush(ledger) == {"costs/train/judge": 0.25}


def test_what_waits_when_the_program_ends_is_said(build, ledger, caplog):
    warn_of_costs_left([ledger])
    assert not caplog.text
    build().add_cost("train/judge", 0.25)
    warn_of_costs_left([ledger])
    assert "the program ends, and costs that wait come into no row" in caplog.text


def test_a_model_that_logs_in_a_forked_process_is_open_there(build, ledger, caplog):
    clear_in_child([ledger])
    ledger.add_logged_costs({})
    build().add_cost("train/judge", 0.25)
    assert not caplog.text


def test_receipts_say_what_was_paid_for_and_come_back_with_a_restored_row(build, ledger):
    build().register_model_pricing("judge", prompt_per_million=1.0, completion_per_million=10.0)
    usage = TokenUsage(input_tokens=1_000_000, output_tokens=100_000)
    for model in ("judge", "judge", "unheard-of"):
        build("eval").add_usage("judge", usage, provider="acme", model_name=model)
    gpu = art.GpuTime(device="card", seconds=1800, count=2, usd_per_hour=3.0)
    assert build().add_gpu_time(gpu) == 3.0
    taken = take(ledger, "val")
    ledger.restore(taken)
    assert take(ledger, "val") == taken
    bought = [receipt.to_dict() for receipt in taken.receipts]
    paid = {"leaf": "costs/eval/judge", "item": "judge", "provider": "acme", "usd": 4.0, "calls": 2}
    assert paid.items() <= bought[0].items()
    assert bought[0]["input_tokens"] == 2_000_000
    assert bought[0]["rates"]["output_per_million"] == 10.0
    assert bought[1]["item"] == "unheard-of"
    assert "usd" not in bought[1]
    assert bought[2] == {
        "leaf": "costs/gpu",
        "item": "card",
        "device_seconds": 3600.0,
        "usd": 3.0,
        "rates": {"usd_per_hour": 3.0, "source": "explicit"},
    }


def test_the_named_helpers_fill_their_sections(build, ledger):
    builder = build()
    builder.add_data(step_num_scenarios=2, step_actor_tokens=40, scenario_ids=["a", 1])
    builder.add_user_timing(step_wall_s=3.0, step_actor_s=1.0, step_eval_s=0.5)
    builder.add_idle_times(step_trainer_idle_s=0.25, step_actor_idle_s=0.75)
    taken = take(ledger, "train")
    assert taken.scenario_ids == {"a", "1"}
    assert taken.combined(ledger.taxonomy)[0] == {
        "data/step_num_scenarios": 2.0,
        "data/step_actor_tokens": 40.0,
        "time/step_wall_s": 3.0,
        "time/step_actor_s": 1.0,
        "time/step_eval_s": 0.5,
        "throughput/step_trainer_idle_s": 0.25,
        "throughput/step_actor_idle_s": 0.75,
    }


def test_a_string_of_scenario_ids_is_an_error(build):
    with pytest.raises(ConfigError, match="collection of ids"):
        build().add_data(scenario_ids="abc")


def test_measure_adds_the_seconds_of_a_block_even_when_it_raises(build, ledger, monkeypatch):
    clock = SimpleNamespace(perf_counter=iter([100.0, 100.25]).__next__)
    monkeypatch.setattr(module, "time", clock)

    def work():
        with build().measure("time/step_actor_s"):
            raise ValueError

    with pytest.raises(ValueError):
        work()
    assert flush(ledger)["time/step_actor_s"] == 0.25


def test_measure_checks_its_key_before_the_block_runs(build):
    with pytest.raises(MetricError), build().measure("tmie/step_actor_s"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("usd", [-0.1, float("-inf")])
def test_a_negative_cost_is_an_error(build, usd):
    with pytest.raises(MetricError, match="negative"):
        build().add_cost("train/judge", usd)


def test_a_cost_that_is_not_finite_is_set_apart_and_the_others_are_kept(build, ledger):
    for usd in (0.5, float("nan"), 0.25):
        build().add_cost("train/judge", usd)
    build().add_cost("gpu", float("inf"))
    leaves, nonfinite = take(ledger, "train").combined(ledger.taxonomy)
    assert leaves == {"costs/train/judge": 0.75}
    assert {key: str(value) for key, value in nonfinite.items()} == {
        "costs/train/judge": "nan",
        "costs/gpu": "inf",
    }


def test_a_row_takes_its_own_split_and_the_money_of_all(build, ledger):
    build("train").add_metric("loss/train", 1.0)
    build("train").add_cost("train/judge", 0.5)
    build("eval").add_metric("own", 2.0)
    build("eval").add_cost("eval/judge", 0.25)
    build().add_metric("time/step_wall_s", 9.0)
    assert flush(ledger, "val") == {
        "costs/train/judge": 0.5,
        "costs/eval/judge": 0.25,
        "val/own": 2.0,
        "time/step_wall_s": 9.0,
    }
    assert flush(ledger, "train") == {"loss/train": 1.0}


def test_scenario_ids_wait_for_a_train_row(build, ledger):
    build().add_data(scenario_ids=["a"])
    assert take(ledger, "val").scenario_ids == frozenset()
    assert take(ledger, "train").scenario_ids == {"a"}


def test_what_was_taken_can_be_restored_before_what_came_since(build, ledger):
    build().add_metric("data/position", 1)
    build().add_data(scenario_ids=["a"])
    taken = take(ledger, "train")
    build().add_metric("data/position", 2)
    ledger.restore(taken)
    again = take(ledger, "train")
    assert again.samples == {"": {"data/position": [1.0, 2.0]}}
    assert again.scenario_ids == {"a"}


@pytest.mark.usefixtures("threads_in_turn")
def test_sixteen_threads_add_the_exact_total(build, ledger):
    def spend():
        for _ in range(1_000):
            build("train").add_cost("train/judge", 0.001)

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flush(ledger)["costs/train/judge"] == pytest.approx(16.0, abs=1e-9)


def test_many_samples_are_folded_without_losing_any(build, ledger):
    build().add_cost("train/judge", float("nan"))
    for _ in range(10_000):
        build().add_cost("train/judge", 0.001)
    assert len(ledger._samples[""]["costs/train/judge"]) < 5_000
    leaves, nonfinite = take(ledger, "train").combined(ledger.taxonomy)
    assert leaves["costs/train/judge"] == pytest.approx(10.0, abs=1e-9)
    assert "costs/train/judge" in nonfinite


def test_usage_is_priced_under_the_builders_context(build, ledger):
    build().register_model_pricing("judge-1", prompt_per_million=1.0, completion_per_million=10.0)
    usage = TokenUsage(input_tokens=1_000_000, output_tokens=100_000)
    assert (
        build("eval").add_usage("judge", usage, provider="acme", model_name="acme/judge-1") == 2.0
    )
    assert build().add_usage("judge", usage, provider="acme", model_name="judge-1") == 2.0
    assert flush(ledger) == {"costs/eval/judge": 2.0, "costs/train/judge": 2.0}


def test_a_response_without_a_price_is_counted(build, ledger):
    response = {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    usd = build("train").add_response_cost(
        "judge", response, provider="acme", model_name="unheard-of"
    )
    assert usd is None
    assert flush(ledger) == {"data/step_unpriced_calls": 1.0}


def test_a_cost_extractor_reads_dollars_from_a_providers_responses(build, ledger):
    build().register_cost_extractor("acme", lambda response: response["cents"] / 100)
    build("train").add_response_cost("judge", {"cents": 50}, provider="acme", model_name="any")
    assert flush(ledger) == {"costs/train/judge": 0.5}


def test_a_builder_is_active_inside_its_context(build):
    builder = build("train")
    with builder.activate_context() as active:
        assert active is builder
        assert active_builder.get() is builder
    assert active_builder.get() is None
    token = builder.activate()
    assert active_builder.get() is builder
    active_builder.reset(token)


@pytest.mark.parametrize("key", [5, None])
def test_a_key_that_is_no_text_is_an_error(build, key):
    with pytest.raises(MetricError, match="name must be a string"):
        build().add_metric(key, 1.0)


def test_a_response_whose_own_cost_is_no_number_of_dollars_is_priced_by_its_tokens(build, ledger):
    build().register_model_pricing("m", prompt_per_million=1.0, completion_per_million=1.0)
    response = {"usage": {"prompt_tokens": 1_000_000, "cost": float("nan")}}
    paid = build().add_response_cost("judge", response, provider="acme", model_name="m")
    assert paid == 1.0
    (receipt,) = take(ledger, "train").receipts
    assert (receipt.usd, receipt.reported, receipt.rates["input_per_million"]) == (1.0, False, 1.0)
