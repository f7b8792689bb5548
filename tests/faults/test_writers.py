"""Several who would write one log: processes, models, forks and threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from art_core.base.errors import HistoryError
from waiting import until

SECOND = """
import sys, art_core as art
try:
    art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[]).run
except art.HistoryError as error:
    print(error)
"""


def test_a_second_process_gets_a_clear_error_and_changes_nothing(tmp_path, model_in):
    model = model_in(tmp_path)
    model.run.record("train", 1, metrics={"costs/gpu": 0.25})
    files = {p: p.read_bytes() for p in model.run_dir.iterdir() if p.is_file()}
    command = [sys.executable, "-c", SECOND, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "is in use by another process" in done.stdout
    assert {p: p.read_bytes() for p in model.run_dir.iterdir() if p.is_file()} == files
    assert model.run.record("train", 2).seq == 2
    model.run.close()


RACE = """
import sys, art_core as art
base, number = sys.argv[1:]
model = art.Model(name="m", project="p", base_path=base, sinks=[])
art.Model(name="other" + number, project="p", base_path=base, sinks=[]).run  # all is imported
print("ready", flush=True)
sys.stdin.readline()
try:
    run = model.run
except art.HistoryError as error:
    assert "is in use" in str(error)
    sys.exit(3)
for step in range(1, 101):
    run.record("train", step, metrics={"costs/gpu": 0.25})
sys.stdin.read()
run.close()
"""


def test_of_eight_processes_that_open_a_run_at_once_one_has_it(tmp_path, assert_right):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen([*command, str(n)], **pipes) for n in range(8)]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    until(lambda: sum(racer.poll() == 3 for racer in racers) >= 7)
    for racer in racers:
        racer.communicate()  # the winner goes on to its end
    assert sorted(racer.returncode for racer in racers) == [0] + [3] * 7
    rows = assert_right(tmp_path / "p" / "models" / "m", range(1, 101))
    assert len(rows) == 100


def test_two_runs_in_one_process_stay_apart_and_one_run_has_one_model(
    tmp_path, model_in, assert_right
):
    one, two = model_in(tmp_path / "one"), model_in(tmp_path / "two")
    for step in range(1, 51):
        one.run.record("train", step, metrics={"costs/gpu": 0.25})
        two.run.record("train", step, metrics={"costs/gpu": 0.5})
    newer = model_in(tmp_path / "one")
    newer.run.record("train", 51, metrics={"costs/gpu": 0.25})
    with pytest.raises(HistoryError, match="the run .* belongs to a newer model object"):
        _ = one.run
    for model, usd in ((newer, 12.75), (two, 25.0)):
        model.run.close()
        assert assert_right(model.run_dir)[-1].metrics["costs/cum/all"] == usd


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_a_fork_of_a_process_with_an_open_run_changes_nothing(
    tmp_path, model_in, assert_right, end
):
    code = f"""
import os, sys, art_core as art
taken = []
class Sink:
    def open(self, run): ...
    def write(self, rows): taken.extend(row.seq for row in rows)
    def close(self, run): ...
spec = art.SinkSpec(name="list", create=Sink, summary="")
model = art.Model(name="m", project="p", base_path={str(tmp_path)!r}, sinks=[spec])
run = model.run
run.record("train", 1, metrics={{"costs/gpu": 0.25}})
run.ledger.add("train", "costs/train/judge", 0.25)
if not os.fork():
    try:
        run.record("train", 2)
        os._exit(5)
    except art.HistoryError as error:
        assert "before this process was forked" in str(error)
    {end}(0)
assert os.wait()[1] == 0
run.record("train", 2, metrics={{"costs/gpu": 0.25}})
assert run.close()["list"].undelivered == 0
assert taken == [1, 2], taken
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    rows = assert_right(model_in(tmp_path).run_dir, [1, 2])
    assert rows[-1].metrics["costs/cum/all"] == 0.75


def test_sixteen_threads_that_add_costs_while_rows_are_written_add_up_exactly(
    tmp_path, model_in, assert_right
):
    model = model_in(tmp_path)
    builder, begin = model.metrics_builder("train"), threading.Barrier(17)

    def spend(thread):
        begin.wait()
        for _ in range(2_000):
            builder.add_cost(f"train/judge_{thread % 4}", 0.25)

    threads = [threading.Thread(target=spend, args=[n]) for n in range(16)]
    for thread in threads:
        thread.start()
    begin.wait()
    step = 0
    while any(thread.is_alive() for thread in threads):
        model.run.record("train", step := step + 1)
    last = model.run.record("train", step + 1)
    rows = assert_right(model.run_dir)
    assert len(rows) == step + 1
    assert last.metrics["costs/cum/all"] == 16 * 2_000 * 0.25
    assert [last.metrics[f"costs/cum/train/judge_{n}"] for n in range(4)] == [2_000.0] * 4
    model.run.close()


def test_sixteen_threads_that_log_have_a_row_each_time(tmp_path, model_in, assert_right):
    model = model_in(tmp_path)
    run, seqs = model.run, []

    def log():
        seqs.extend(run.record("train", n, metrics={"costs/gpu": 0.25}).seq for n in range(50))

    threads = [threading.Thread(target=log) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seqs) == list(range(1, 801))
    assert assert_right(model.run_dir, seqs)[-1].metrics["costs/cum/all"] == 200.0
    run.close()
