"""Values of every kind, and directories of every kind."""

from __future__ import annotations

import asyncio
import shutil
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import art_core as art
from art_core.base.errors import ConfigError, HistoryError, MetricError
from art_core.log import history

torch = pytest.importorskip("torch")

NUMBERS = {
    "bool": (True, 1.0),
    "int": (3, 3.0),
    "float": (0.1, 0.1),
    "tiny": (5e-324, 5e-324),
    "big int": (2**60, 2.0**60),
    "Decimal": (Decimal("0.1"), 0.1),
    "Fraction": (Fraction(1, 8), 0.125),
    "numpy bool": (np.bool_(True), 1.0),
    "numpy float16": (np.float16(0.5), 0.5),
    "numpy float32": (np.float32(0.25), 0.25),
    "numpy float64": (np.float64(0.1), 0.1),
    "numpy int8": (np.int8(-7), -7.0),
    "numpy uint64": (np.uint64(2**63), 2.0**63),
    "numpy array of no dimension": (np.array(0.5), 0.5),
    "torch float32": (torch.tensor(0.5), 0.5),
    "torch bfloat16": (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
    "torch int64": (torch.tensor(7), 7.0),
    "torch bool": (torch.tensor(True), 1.0),
    "torch of one element": (torch.tensor([2.0]), 2.0),
    "torch with a gradient": (torch.tensor(0.5, requires_grad=True), 0.5),
}
ODD = {
    "nan": (float("nan"), "nan"),
    "inf": (float("inf"), "inf"),
    "-inf": (float("-inf"), "-inf"),
    "numpy nan": (np.float32("nan"), "nan"),
    "torch inf": (torch.tensor(float("inf")), "inf"),
    "Decimal NaN": (Decimal("NaN"), "nan"),
    "int beyond floats": (10**400, "inf"),
    "negative int beyond floats": (-(10**400), "-inf"),
    "Fraction beyond floats": (Fraction(10**400), "inf"),
}
NO_NUMBERS = {
    "None": None,
    "str": "0.5",
    "bytes": b"1",
    "list": [0.5],
    "dict": {"a": 1},
    "complex": 1j,
    "signalling NaN": Decimal("sNaN"),
    "torch of two elements": torch.tensor([1.0, 2.0]),
    "numpy array of two elements": np.array([1.0, 2.0]),
    "object": object(),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("kind", NUMBERS)
async def test_a_number_of_any_kind_is_logged_as_the_float_that_it_is(
    tmp_path, model_in, assert_right, kind
):
    value, wanted = NUMBERS[kind]
    model = model_in(tmp_path)
    paid = wanted if wanted >= 0 and "bool" not in kind else 0.0
    if paid:
        model.metrics_builder("train").add_cost("train/judge", value)
    await model.log(metrics={"loss/train": value, "costs/gpu": 0.25}, split="train", step=1)
    await model.close()
    (row,) = assert_right(model.run_dir, [1])
    assert row.metrics["loss/train"] == wanted
    assert row.metrics["costs/all"] == 0.25 + paid
    assert b'"loss/train":' in (model.run_dir / "history.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ODD)
async def test_a_value_that_is_not_finite_stands_aside_and_poisons_no_sum(
    tmp_path, model_in, assert_right, caplog, kind
):
    value, told = ODD[kind]
    model = model_in(tmp_path)
    await model.log(metrics={"loss/train": value, "costs/gpu": 0.25}, split="train", step=1)
    await model.log(metrics={"costs/gpu": 0.25}, split="train", step=2)
    await model.close()
    first, second = assert_right(model.run_dir, [1, 2])
    assert first.nonfinite == {"loss/train": told}
    assert second.metrics["costs/cum/all"] == 0.5
    assert "not finite" in caplog.text


@pytest.mark.parametrize("kind", NO_NUMBERS)
async def test_what_is_no_number_is_refused_by_name_and_costs_nothing(
    tmp_path, model_in, assert_right, kind
):
    model = model_in(tmp_path)
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    with pytest.raises(MetricError, match="'loss/train' must be a number"):
        await model.log(metrics={"loss/train": NO_NUMBERS[kind]}, split="train", step=1)
    await model.log(split="train", step=1)
    await model.close()
    (row,) = assert_right(model.run_dir, [1])
    assert row.metrics["costs/cum/all"] == 0.25


@pytest.mark.parametrize("kind", [*ODD, *NO_NUMBERS])
async def test_a_trajectory_with_an_odd_metric_ends_nothing(tmp_path, model_in, assert_right, kind):
    value = ODD[kind][0] if kind in ODD else NO_NUMBERS[kind]
    model = model_in(tmp_path)
    group = art.TrajectoryGroup([art.Trajectory(reward=1.0, metrics={"odd": value})])
    acknowledged = []
    try:
        acknowledged.append((await model.log([group], split="train", step=1)).seq)
    except MetricError as error:
        refused = str(error)
    else:
        refused = ""
    assert ("'odd' must be a number" in refused) == (kind in NO_NUMBERS)
    acknowledged.append((await model.log(metrics={"costs/gpu": 0.25}, split="train", step=2)).seq)
    await model.close()
    assert_right(model.run_dir, acknowledged)


NAMES = ["a b", "ünïcode 正解", "a.b", "-dash", "x" * 128]


@pytest.mark.parametrize("name", NAMES)
async def test_a_directory_of_any_name_holds_a_run(tmp_path, assert_right, name):
    base = tmp_path / "with spaces" / "ünïcode"
    model = art.Model(name=name, project=name, base_path=base, sinks=[])
    await model.log(metrics={"costs/gpu": 0.25}, split="train", step=1)
    await model.close()
    assert_right(base / name / "models" / name, [1])


@pytest.mark.parametrize(
    "name", ["..", ".", "../up", "a/b", "a\\b", "/root", "x" * 300, "", "a\0b"]
)
def test_a_name_that_would_leave_its_directory_or_not_fit_is_refused(tmp_path, name):
    for named in ({"name": name, "project": "p"}, {"name": "m", "project": name}):
        with pytest.raises(ConfigError, match="can't be a directory's name"):
            art.Model(**named, base_path=tmp_path, sinks=[])
    assert list(tmp_path.iterdir()) == []


async def test_a_run_behind_a_symbolic_link_is_one_run(tmp_path, model_in, assert_right):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    through, straight = model_in(tmp_path / "link"), model_in(tmp_path / "real")
    await through.log(metrics={"costs/gpu": 0.25}, split="train", step=1)
    row = await straight.log(metrics={"costs/gpu": 0.25}, split="train", step=2)
    assert (row.seq, row.metrics["costs/cum/all"]) == (2, 0.5)
    with pytest.raises(HistoryError, match="belongs to a newer model object"):
        await through.log(metrics={"costs/gpu": 0.25}, split="train", step=3)
    await straight.close()
    assert_right(straight.run_dir, [1, 2])


OPEN = """
import sys, art_core as art
try:
    art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[]).run
except art.HistoryError as error:
    print(error)
"""


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_system_that_is_read_only_is_told_with_what_to_do(
    tmp_path, model_in, own_mounts, begun
):
    base = tmp_path / "runs"
    base.mkdir()
    if begun:
        model = model_in(base)
        model.run.record("train", 1)
        model.run.close()
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    mounted = f"mount --bind {base} {base} && mount -o remount,ro,bind {base}"
    done = own_mounts(mounted, [sys.executable, "-c", OPEN, str(base)])
    assert "cannot open" in done.stdout, done.stderr
    assert "Read-only file system" in done.stdout
    assert "Choose another base_path" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before


async def test_a_directory_that_is_deleted_in_mid_run_is_said_soon(tmp_path, model_in, monkeypatch):
    monkeypatch.setattr(history, "SYNC_SECONDS", 0.05)
    model = model_in(tmp_path)
    await model.log(metrics={"costs/gpu": 0.25}, split="train", step=1)
    shutil.rmtree(model.run_dir)
    with pytest.raises(HistoryError, match="was deleted while in use.*Open the run again"):
        while True:
            await model.log(metrics={"costs/gpu": 0.25}, split="train", step=2)
            await asyncio.sleep(0.01)
    assert await model.close() == {}
    again = model_in(tmp_path)
    row = await again.log(metrics={"costs/gpu": 0.25}, split="train", step=3)
    assert (row.seq, row.attempt) == (1, 1)
    await again.close()


def test_a_log_that_is_no_file_is_an_error_that_says_so(tmp_path, model_in):
    model = model_in(tmp_path)
    model.run_dir.mkdir(parents=True)
    (model.run_dir / "history.jsonl").mkdir()
    with pytest.raises(HistoryError, match=r"cannot open .*history\.jsonl"):
        _ = model.run
