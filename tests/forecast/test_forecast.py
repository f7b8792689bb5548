"""Forecasts of logged runs: series by hand, and what bad logs and other programs' logs give."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from art_core.base.errors import ConfigError
from art_core.forecast.forecast import coming_evaluations, forecast
from art_core.forecast.usage import is_evaluation, read_usage
from art_core.log.history import MetricsRow
from art_core.log.reader import LoggedRun
from art_core.metrics.receipt import Receipt

BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
HISTORIES = Path(__file__).parent.parent / "histories"


def row(seq, step, split="train", metrics=None, receipts=(), attempt=1, minutes=None):
    at = BEGINS + timedelta(minutes=10 * seq if minutes is None else minutes)
    learned = {"reward/mean": 0.5} if split == "train" else {}
    return MetricsRow(
        seq, attempt, step, split, at, learned | (metrics or {}), receipts=tuple(receipts)
    )


def costs(**usd):
    return {f"costs/{path.replace('__', '/')}": value for path, value in usd.items()}


def logged(tmp_path, rows):
    path = tmp_path / "demo" / "models" / "a"
    path.mkdir(parents=True)
    (path / "history.jsonl").write_bytes(b"".join(each.to_line() for each in rows))
    return LoggedRun(path)


def amounts(run, usd=lambda receipt: receipt.usd):
    return {(each.unit, each.name): each for each in read_usage(run, usd).amounts}


def test_steps_and_evaluations_are_forecast_apart_and_added(tmp_path):
    rows = []
    for step in range(1, 9):
        rows.append(row(len(rows) + 1, step, metrics=costs(gpu=1.0, all=1.0)))
        if step % 2 == 0:
            rows.append(row(len(rows) + 1, step, "val", costs(eval__judge=0.5, all=0.5)))
    usage = read_usage(logged(tmp_path, rows), lambda receipt: receipt.usd)
    assert (usage.steps, usage.evaluated) == ((*range(1, 9),), (2, 4, 6, 8))
    found = forecast(usage, 20)
    # 12 steps of 1 dollar, and evaluations at 10, 12, ..., 20
    assert found.evaluations == 6
    lines = found.costs()
    assert lines["all"].coming.median == pytest.approx(15.0)
    assert lines["all"].coming.mean == pytest.approx(15.0)
    assert lines["gpu"].coming.median == pytest.approx(12.0)
    assert lines["eval/judge"].coming.high90 == pytest.approx(3.0)
    assert lines["gpu"].spent == pytest.approx(8.0)
    assert lines["gpu"].total.median == pytest.approx(20.0)


def test_receipts_give_tokens_by_kind_device_hours_and_todays_prices(tmp_path):
    judge = Receipt(
        leaf="costs/train/judge", item="m", provider="far", usd=0.5, calls=2,
        input_tokens=100, output_tokens=20, cache_read_tokens=40,
    ).to_dict()  # fmt: skip
    device = Receipt(leaf="costs/gpu", item="H200", device_seconds=7200.0, usd=6.0).to_dict()
    paid = costs(train__judge=0.5, train=0.5, gpu=6.0, all=6.5)
    rows = [row(step, step, metrics=paid, receipts=[judge, device]) for step in range(1, 5)]
    run = logged(tmp_path, rows)
    found = amounts(run)
    assert found["token", "train/judge: prompt tokens"].of_steps == (100.0,) * 4
    assert found["token", "train/judge: cached prompt tokens"].spent == 160.0
    assert found["token", "train/judge: sampled tokens"].spent == 80.0
    assert found["hour", "gpu: H200"].of_steps == (2.0,) * 4
    assert read_usage(run, lambda receipt: receipt.usd).notes == ()
    # the judge at half of its price: its leaf, the sum above it, and the whole
    cheaper = read_usage(run, lambda receipt: 0.25 if receipt.item == "m" else receipt.usd)
    now = {each.name: each for each in cheaper.amounts if each.unit == "usd"}
    assert now["train/judge"].of_steps == now["train"].of_steps == (0.25,) * 4
    assert now["all"].of_steps == pytest.approx((6.25,) * 4)
    assert now["all"].spent == pytest.approx(26.0)
    assert cheaper.notes == ("prices have changed since: what comes is at today's",)


def test_a_log_without_receipts_states_so(tmp_path):
    run = logged(tmp_path, [row(s, s, metrics=costs(gpu=1.0, all=1.0)) for s in (1, 2, 3)])
    usage = read_usage(run, lambda receipt: receipt.usd)
    assert usage.notes[0].startswith("the log has no receipts")
    assert forecast(usage, 5).costs()["all"].total.median == pytest.approx(5.0)


def test_a_cost_that_began_late_goes_on_at_each_step(tmp_path):
    rows = [row(step, step, metrics=costs(gpu=1.0)) for step in (1, 2, 3)]
    rows += [row(s, s, metrics=costs(gpu=1.0, train__judge=2.0)) for s in (4, 5, 6)]
    rows += [row(7, 7, metrics=costs(gpu=1.0, train__other=2.0))]
    found = amounts(logged(tmp_path, rows))
    assert found["usd", "train/judge"].of_steps == (2.0, 2.0, 2.0, 0.0)
    lines = forecast(read_usage(LoggedRun(tmp_path / "demo/models/a"), lambda r: r.usd), 9).costs()
    assert lines["train/other"].coming is None
    assert lines["train/other"].total is None


def test_steps_that_were_trained_again_count_once_and_were_paid_twice(tmp_path):
    rows = [row(step, step, metrics=costs(gpu=1.0)) for step in (1, 2, 3)]
    rows += [row(s + 2, s, metrics=costs(gpu=4.0), attempt=2) for s in (2, 3, 4)]
    found = amounts(logged(tmp_path, rows))["usd", "gpu"]
    assert found.of_steps == (1.0, 4.0, 4.0, 4.0)
    assert found.spent == pytest.approx(15.0)


def test_hours_are_those_that_were_logged_else_between_rows(tmp_path):
    timed = [row(s, s, metrics={"time/step_wall_s": 1800.0}) for s in (1, 2)]
    assert amounts(logged(tmp_path / "timed", timed))["hour", "wall clock"].of_steps == (0.5, 0.5)
    # the clock is set back at step 3; between steps 5 and 6 the run was paused for a week
    minutes = [0, 60, 30, 90, 150, 10_000, 10_060]
    rows = [row(s, s, minutes=m) for s, m in enumerate(minutes, 1)]
    rows.append(row(8, 8, attempt=2, minutes=20_000))
    found = amounts(logged(tmp_path / "jumps", rows))["hour", "wall clock"]
    shown = ["-" if hours != hours else hours for hours in found.of_steps]
    assert shown == [1.0, "-", 1.0, 1.0, "-", 1.0, "-"]
    assert found.spent == pytest.approx(4.0)


def test_rows_of_evaluations_are_known_by_split_or_by_their_metrics():
    assert is_evaluation(row(1, 1, "val"))
    assert not is_evaluation(row(1, 1, "train"))
    assert is_evaluation(row(1, 1, "", {"val/reward": 1.0}))
    assert not is_evaluation(row(1, 1, "", {"val/reward": 1.0, "loss/train": 1.0}))
    assert not is_evaluation(row(1, 1, "", {"data/step_actor_tokens": 1.0}))


def test_the_log_of_art_is_read(tmp_path):
    path = tmp_path / "demo" / "models" / "a"
    path.mkdir(parents=True)
    shutil.copy(HISTORIES / "art-0.5.23.jsonl", path / "history.jsonl")
    usage = read_usage(LoggedRun(path), lambda receipt: receipt.usd)
    assert usage.evaluated[:1] == (1,)
    line = forecast(usage, usage.steps[-1] + 3).costs()["train/llm_judge/style"]
    assert line.coming.median == pytest.approx(0.75)


def test_a_torn_last_line_and_odd_lines_are_passed_over(tmp_path):
    run = logged(tmp_path, [row(s, s, metrics=costs(gpu=1.0, all=1.0)) for s in (1, 2, 3)])
    with run.history.open("ab") as file:
        file.write(b'{"no": "row"}\n{"seq": 4, "step": 4, "spl')
    assert read_usage(run, lambda receipt: receipt.usd).steps == (1, 2, 3)


def test_bytes_of_the_log_trajectories_and_checkpoints(tmp_path):
    rows = [row(s, s, metrics=costs(gpu=1.0)) for s in (1, 2, 3)]
    rows.append(row(4, 2, "val", {"val/reward": 1.0}))
    run = logged(tmp_path, rows)
    for name, size in [("trajectories/train/0001", 10), ("trajectories/train/0002", 20),
                       ("trajectories/val/0002", 5), ("evaluations/val/0002", 7)]:  # fmt: skip
        file = run.path / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    log = run.history.stat().st_size
    found = amounts(run)["byte", "log and trajectories"]
    assert found.of_steps == pytest.approx((10 + log / 3, 20 + log / 3, log / 3))
    assert found.of_evaluations == (12.0,)
    assert found.spent == pytest.approx(log + 42)
    for step in (2, 3):
        (run.path / "checkpoints" / f"{step:04d}").mkdir(parents=True)
        (run.path / "checkpoints" / f"{step:04d}" / "weights").write_bytes(b"x" * 100)
    (run.path / "checkpoints" / "aside").mkdir()
    kept = amounts(run)["byte", "checkpoints"]
    assert (kept.of_steps, kept.spent) == ((100.0, 100.0), 200.0)
    # one that was pruned: as many stay
    (run.path / "checkpoints" / "0003" / "weights").unlink()
    (run.path / "checkpoints" / "0003").rmdir()
    usage = read_usage(run, lambda receipt: receipt.usd)
    assert usage.notes[-1].startswith("not every step has its checkpoint")
    line = next(each for each in forecast(usage, 9).lines if each.name == "checkpoints")
    assert (line.coming.high90, line.total.median) == (0.0, 100.0)


def test_growing_attempts_are_a_trend(tmp_path):
    tokens = [{"data/step_actor_tokens": 1000.0 * 1.02**s} for s in range(20)]
    rows = [row(s, s, metrics=used) for s, used in enumerate(tokens, 1)]
    usage = read_usage(logged(tmp_path, rows), lambda receipt: receipt.usd)
    line = next(x for x in forecast(usage, 40).lines if x.name == "tokens sampled by the model")
    assert line.growth == pytest.approx(0.02)
    newest = 1000 * 1.02**19
    assert newest * 20 * 1.15 < line.coming.median < newest * 20 * 1.25


def test_evaluations_go_on_at_their_usual_distance():
    assert coming_evaluations((), 10) == (0, "")
    assert coming_evaluations((0, 5, 10), 30) == (4, "")
    assert coming_evaluations((0, 5, 10, 12), 30) == (3, "")
    count, note = coming_evaluations((0,), 30)
    assert count == 0
    assert note.startswith("one evaluation shows no distance")


def test_too_few_steps_and_a_step_in_the_past_are_errors(tmp_path):
    run = logged(tmp_path, [row(1, 1)])
    with pytest.raises(ConfigError, match="has 1 trained steps; a forecast needs 2"):
        forecast(read_usage(run, lambda r: r.usd), 5)
    run = logged(tmp_path / "b", [row(s, s) for s in (1, 2, 3)])
    with pytest.raises(ConfigError, match="has trained step 3; step 3 is no later one"):
        forecast(read_usage(run, lambda r: r.usd), 3)
