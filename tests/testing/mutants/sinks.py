"""A right sink, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
from mutants.runner import contracts_of

from art_core.testing.sink import SinkContract


class RightSink:
    """Writes one JSON line per row into a file of the run's directory."""

    def open(self, run):
        self.path = run.run_dir / "rows.jsonl"
        self.path.touch()
        self.seen = {line["seq"] for line in lines_of(self.path)}

    def write(self, rows):
        new = self.chosen(rows)
        with self.path.open("a") as file:
            for row in new:
                file.write(json.dumps(self.line(row)) + "\n")
        self.seen |= {row.seq for row in new}

    def chosen(self, rows):
        return [row for row in rows if row.seq not in self.seen]

    def line(self, row):
        metrics = self.metrics(row)
        return {"seq": row.seq, "step": row.step, "split": row.split, "metrics": metrics}

    def metrics(self, row):
        return row.metrics

    def close(self, run):
        pass


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestRight(SinkContract):
    sink: ClassVar = RightSink
    seconds_per_call = 20.0

    @pytest.fixture
    def make_sink(self):
        return self.sink

    @pytest.fixture
    def read_back(self):
        def rows(run):
            lines = lines_of(run.run_dir / "rows.jsonl")
            return [(line["step"], line["split"], line["metrics"]) for line in lines]

        return rows


class DropsEveryRow(RightSink):
    """It writes no row."""

    def chosen(self, rows):
        return []


class DropsTheLastRow(RightSink):
    """It leaves out the last row of each batch."""

    def chosen(self, rows):
        return super().chosen(rows[:-1])


class WritesTwice(RightSink):
    """It writes each row a second time, under another seq."""

    def chosen(self, rows):
        new = super().chosen(rows)
        return [*new, *(attrs.evolve(row, seq=row.seq + 1_000_000) for row in new)]


class Reorders(RightSink):
    """It writes a batch in reverse order."""

    def chosen(self, rows):
        return super().chosen(rows)[::-1]


class KeepsRepeats(RightSink):
    """It writes a row again when the row comes again."""

    def chosen(self, rows):
        return rows


class ForgetsWhatItWrote(RightSink):
    """A new sink does not know which rows the one before it wrote."""

    def open(self, run):
        super().open(run)
        self.seen = set()


class ForgetsUntilItIsOpened(RightSink):
    """It knows only after an open which rows it wrote."""

    def write(self, rows):
        before = set(self.seen)
        super().write(rows)
        self.seen = before


class ForgetsAfterAKill(RightSink):
    """After a run that was not closed it writes rows a second time."""

    def open(self, run):
        super().open(run)
        if not (run.run_dir / "closed").exists():
            self.seen = set()

    def close(self, run):
        (run.run_dir / "closed").touch()


class DropsTheFirstBatch(RightSink):
    """It ignores the first batch after it was opened."""

    ready = False

    def chosen(self, rows):
        self.ready, before = True, self.ready
        return super().chosen(rows) if before else []


class DeletesOtherFiles(RightSink):
    """It deletes files of the run that it did not write."""

    def open(self, run):
        for path in run.run_dir.iterdir():
            if path.is_file() and path.name != "rows.jsonl":
                path.unlink()
        super().open(run)


class StartsOver(RightSink):
    """It empties the file when it is opened."""

    def open(self, run):
        (run.run_dir / "rows.jsonl").write_text("")
        super().open(run)


class SharesState(RightSink):
    """All its sinks share the seqs that they have written."""

    seqs: ClassVar = set()

    def open(self, run):
        super().open(run)
        self.seqs |= self.seen
        self.seen = self.seqs

    def write(self, rows):
        super().write(rows)
        self.seqs |= self.seen


class WritesToTheNewestRun(RightSink):
    """All its sinks write into the run that was opened last."""

    newest: ClassVar = []

    def open(self, run):
        super().open(run)
        self.newest.append(self.path)

    def write(self, rows):
        self.path = self.newest[-1]
        super().write(rows)


class Buffers(RightSink):
    """It keeps rows in memory until it is closed."""

    def open(self, run):
        super().open(run)
        self.buffer = []

    def write(self, rows):
        self.buffer += rows

    def close(self, run):
        super().write(self.buffer)
        self.buffer = []


class WritesAfterClose(RightSink):
    """It writes on a thread that goes on after close."""

    def close(self, run):
        rows, self.late = self.late, []
        threading.Timer(0.5, super().write, [rows]).start()

    def open(self, run):
        super().open(run)
        self.late = []

    def write(self, rows):
        self.late += rows


class RoundsNumbers(RightSink):
    """It rounds numbers to six digits after the point."""

    def metrics(self, row):
        return {key: round(value, 6) for key, value in row.metrics.items()}


class LosesSmallNumbers(RightSink):
    """It writes very small numbers as zero."""

    def metrics(self, row):
        return {k: v if abs(v) > 1e-12 else 0.0 for k, v in row.metrics.items()}


class CapsLargeNumbers(RightSink):
    """It writes very large numbers as the largest 32-bit float."""

    def metrics(self, row):
        return {k: max(-3e38, min(3e38, v)) for k, v in row.metrics.items()}


class LosesNegativeNumbers(RightSink):
    """It leaves out numbers below zero."""

    def metrics(self, row):
        return {key: value for key, value in row.metrics.items() if value >= 0}


class LosesZeros(RightSink):
    """It leaves out numbers that are zero."""

    def metrics(self, row):
        return {key: value for key, value in row.metrics.items() if value}


class WritesAscii(RightSink):
    """It replaces letters outside ASCII."""

    def metrics(self, row):
        return {k.encode("ascii", "replace").decode(): v for k, v in row.metrics.items()}


class ReplacesPunctuation(RightSink):
    """It replaces punctuation in keys by an underscore."""

    def metrics(self, row):
        plain = str.maketrans(" .:%#?&", "_______")
        return {key.translate(plain): value for key, value in row.metrics.items()}


class FoldsCase(RightSink):
    """It writes keys in lower case."""

    def metrics(self, row):
        return {key.lower(): value for key, value in row.metrics.items()}


class LosesParents(RightSink):
    """It leaves out a key that another key begins with."""

    def metrics(self, row):
        keys = row.metrics
        return {k: v for k, v in keys.items() if not any(x.startswith(f"{k}/") for x in keys)}


class LosesLaterParents(RightSink):
    """It leaves out a key that a key of an earlier row begins with."""

    def open(self, run):
        super().open(run)
        self.keys = set()

    def metrics(self, row):
        kept = {
            k: v
            for k, v in row.metrics.items()
            if not any(x.startswith(f"{k}/") for x in self.keys)
        }
        self.keys |= row.metrics.keys()
        return kept


class DropsASection(RightSink):
    """It leaves out a section of metrics."""

    def metrics(self, row):
        return {key: value for key, value in row.metrics.items() if not key.startswith("loss/")}


class LimitsMetrics(RightSink):
    """It keeps the first thousand metrics of a row."""

    def metrics(self, row):
        return dict(list(row.metrics.items())[:1000])


class FixesColumns(RightSink):
    """It keeps only the keys of the first row."""

    columns = None

    def metrics(self, row):
        self.columns = self.columns or set(row.metrics)
        return {key: value for key, value in row.metrics.items() if key in self.columns}


class DropsEmptyRows(RightSink):
    """It leaves out rows without metrics."""

    def chosen(self, rows):
        return [row for row in super().chosen(rows) if row.metrics]


class MergesSplits(RightSink):
    """It writes one row per step and loses the other splits."""

    def open(self, run):
        super().open(run)
        self.steps = set()

    def chosen(self, rows):
        new = []
        for row in super().chosen(rows):
            if (row.step, row.split == "train") not in self.steps:
                new.append(row)
            self.steps |= {(row.step, True), (row.step, False)}
        return new


class OneRowPerStep(RightSink):
    """It keeps only the first row of a step and split."""

    def open(self, run):
        super().open(run)
        self.places = set()

    def chosen(self, rows):
        new = []
        for row in super().chosen(rows):
            if (row.step, row.split) not in self.places:
                new.append(row)
            self.places.add((row.step, row.split))
        return new


class DropsOldSteps(RightSink):
    """It leaves out rows whose step is lower than the one before."""

    highest = 0

    def chosen(self, rows):
        new = []
        for row in super().chosen(rows):
            if row.step >= self.highest:
                new.append(row)
                self.highest = row.step
        return new


class ShortSteps(RightSink):
    """It keeps 32 bits of the step."""

    def line(self, row):
        return super().line(row) | {"step": row.step % 2**32}


class RenamesSplits(RightSink):
    """It writes splits that it does not know as "other"."""

    def line(self, row):
        known = row.split in ("train", "val", "test")
        return super().line(row) | {"split": row.split if known else "other"}


class SwallowsErrors(RightSink):
    """It ignores that its destination failed, and acknowledges the rows."""

    def write(self, rows):
        try:
            super().write(rows)
        except OSError:
            self.seen |= {row.seq for row in rows}


class NotesTooEarly(RightSink):
    """It notes rows as written before they are."""

    def write(self, rows):
        new = self.chosen(rows)
        self.seen |= {row.seq for row in new}
        with self.path.open("a") as file:
            file.writelines(json.dumps(self.line(row)) + "\n" for row in new)


class NeverCloses(RightSink):
    """Its close blocks forever."""

    def close(self, run):
        threading.Event().wait()


class ClosesOnce(RightSink):
    """A second close raises."""

    closed = False

    def close(self, run):
        if self.closed:
            raise ValueError("closed")
        self.closed = True


class OpensOnce(RightSink):
    """A second open raises."""

    def open(self, run):
        if hasattr(self, "path"):
            raise ValueError("opened")
        super().open(run)


class ForgetsFailedRuns(RightSink):
    """It deletes the rows of a run that failed."""

    def close(self, run):
        if run.status == "failed":
            self.path.write_text("")


class PrefersPlainNames(RightSink):
    """It refuses names that are not ASCII."""

    def open(self, run):
        run.name.encode("ascii")
        super().open(run)


class OpensWhenMade(RightSink):
    """It writes a file before it is opened."""

    def __init__(self):
        Path("made.log").touch()


class ConnectsWhenMade(RightSink):
    """It opens a connection before it is opened."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()


class ChangesRows(RightSink):
    """It adds a metric to the rows that it gets."""

    def metrics(self, row):
        row.metrics["written_at"] = 1.0
        return {key: value for key, value in row.metrics.items() if key != "written_at"}


class Prints(RightSink):
    """It prints to standard output."""

    def close(self, run):
        print("done")


class Litters(RightSink):
    """It writes a file into the working directory."""

    def close(self, run):
        Path("left.txt").touch()


class LeavesAThread(RightSink):
    """It leaves a thread that keeps the process alive."""

    def close(self, run):
        threading.Thread(target=time.sleep, args=[0.5], daemon=False).start()


class ShowsItsKey(RightSink):
    """Its repr shows its API key."""

    api_key = ""

    def open(self, run):
        super().open(run)
        self.api_key = "sk-0123456789"

    def __repr__(self):
        return f"ShowsItsKey({self.api_key!r})"


class IsSlow(RightSink):
    """It takes longer than it may for ten thousand rows."""

    def write(self, rows):
        super().write(rows)
        time.sleep(0.002)


ONCE = "test_every_row_arrives_once_and_in_order"
OUTAGE = "test_rows_that_the_destination_refused_are_not_lost"
FAULTS = {
    DropsEveryRow: ONCE,
    DropsTheLastRow: ONCE,
    WritesTwice: ONCE,
    Reorders: ONCE,
    KeepsRepeats: "test_a_batch_that_comes_again_is_kept_once",
    ForgetsWhatItWrote: "test_rows_that_come_again_to_a_new_sink_are_kept_once",
    ForgetsUntilItIsOpened: "test_a_write_that_raises_is_repeated",
    ForgetsAfterAKill: "test_a_killed_process_is_caught_up",
    DropsTheFirstBatch: "test_a_write_that_hangs_does_not_hold_up_the_run",
    DeletesOtherFiles: "test_it_works_on_the_threads_of_the_core",
    StartsOver: "test_a_resumed_run_goes_on_after_its_rows",
    SharesState: "test_a_run_leaves_nothing_behind_for_the_next",
    WritesToTheNewestRun: "test_two_runs_in_one_process_stay_apart",
    Buffers: "test_rows_are_kept_when_write_returns",
    WritesAfterClose: "test_every_row_is_there_when_close_returns",
    RoundsNumbers: "test_numbers_are_not_rounded",
    LosesSmallNumbers: "test_small_numbers_arrive",
    CapsLargeNumbers: "test_large_numbers_arrive",
    LosesNegativeNumbers: "test_negative_numbers_and_zeros_arrive",
    LosesZeros: "test_negative_numbers_and_zeros_arrive",
    WritesAscii: "test_keys_hold_any_letters",
    ReplacesPunctuation: "test_keys_hold_punctuation",
    FoldsCase: "test_keys_that_differ_in_case_stay_apart",
    LosesParents: "test_a_key_may_begin_with_another",
    LosesLaterParents: "test_a_key_may_begin_an_earlier_one",
    DropsASection: "test_every_metric_arrives_under_its_key",
    LimitsMetrics: "test_a_row_may_have_more_than_a_thousand_metrics",
    FixesColumns: "test_a_key_may_be_new_late_and_another_be_missing",
    DropsEmptyRows: "test_a_row_may_have_no_metrics",
    MergesSplits: "test_rows_of_two_splits_at_one_step_stay_apart",
    OneRowPerStep: "test_a_step_may_have_several_rows",
    DropsOldSteps: "test_evaluations_come_out_of_order",
    ShortSteps: "test_a_step_may_be_zero_or_very_large",
    RenamesSplits: "test_a_split_of_the_users_own_arrives",
    SwallowsErrors: OUTAGE,
    NotesTooEarly: OUTAGE,
    NeverCloses: "test_close_returns",
    ClosesOnce: "test_it_may_be_closed_twice_and_without_rows",
    OpensOnce: "test_it_may_be_opened_again",
    ForgetsFailedRuns: "test_a_run_may_fail",
    PrefersPlainNames: "test_names_and_config_may_be_anything_that_a_directory_and_json_take",
    OpensWhenMade: "test_nothing_happens_before_it_is_opened",
    ConnectsWhenMade: "test_nothing_happens_before_it_is_opened",
    ChangesRows: "test_rows_are_left_as_they_are",
    Prints: "test_it_prints_nothing_where_results_are_printed",
    Litters: "test_it_leaves_the_working_directory_clean",
    LeavesAThread: "test_it_leaves_no_thread_that_keeps_the_process_alive",
    ShowsItsKey: "test_its_repr_shows_no_secret",
    IsSlow: "test_ten_thousand_rows_arrive",
}
globals().update(contracts_of(TestRight, FAULTS, "sink"))
TestNeverCloses.seconds_per_call = 0.2  # noqa: F821
TestDeletesOtherFiles.seconds_per_call = 0.2  # noqa: F821
TestIsSlow.seconds_for_10_000_rows = 0.001  # noqa: F821
