from __future__ import annotations

import pytest

from art_core.log.reader import LoggedRun
from art_core.reports.follow import AttemptSpan, Follower


@pytest.fixture
def follower(log):
    return Follower(LoggedRun(log.path.parent))


def test_only_the_rows_that_are_new_are_read(log, follower):
    log.add(reward__mean=0.1, loss__train=2.0)
    line = follower.read(["reward/mean"])
    assert line.curves() == {"reward/mean": {1: 0.1}}
    log.add(reward__mean=0.2)
    assert follower.read(["reward/mean"]) is line
    assert (line.rows, line.curve("reward/mean")) == (2, {1: 0.1, 2: 0.2})


def test_a_torn_line_is_read_when_it_is_whole(log, follower):
    log.add(reward__mean=0.1)
    log.raw(b'{"seq": 2, "attempt": 1, "step": 2, "split": "train", ')
    assert follower.read(["reward/mean"]).rows == 1
    log.raw(b'"recorded_at": "2026-03-01T12:00:00+00:00", "reward/mean": 0.5}\n')
    assert follower.read(["reward/mean"]).curve("reward/mean") == {1: 0.1, 2: 0.5}


def test_a_metric_that_is_requested_later_joins_those_before(log, follower):
    log.add(reward__mean=0.1, loss__train=2.0)
    follower.read(["reward/mean"])
    assert follower.read(["loss/train"]).curves() == {
        "reward/mean": {1: 0.1},
        "loss/train": {1: 2.0},
    }


def test_a_log_that_another_file_replaced_is_read_anew(log, follower):
    log.add(reward__mean=0.1)
    log.add(reward__mean=0.2)
    follower.read(["reward/mean"])
    log.path.write_bytes(b"")
    log.add(step=1, reward__mean=0.9)
    assert follower.read(["reward/mean"]).curve("reward/mean") == {1: 0.9}


def test_spans_are_the_attempts_that_trained(log, follower):
    log.add(step=1, reward__mean=0.1)
    log.add(step=2, reward__mean=0.1)
    log.add(step=2, split="val", val__reward=0.1)
    log.add(step=2, split="val", attempt=2, reward__other=0.1)  # an evaluation trains nothing
    log.add(step=2, attempt=3, reward__mean=0.2)
    log.add(step=3, attempt=3, reward__mean=0.3)
    follower.read([])
    assert follower.spans == [AttemptSpan(1, 1, 2), AttemptSpan(3, 2, 3)]


def test_rows_of_art_are_one_attempt(log, follower):
    log.raw(b'{"step": 1, "recorded_at": "2026-03-01T12:00:00", "reward/mean": 0.5}\n')
    log.raw(b'{"step": "x", "recorded_at": "2026-03-01T12:00:00", "reward/mean": 0.5}\n')
    log.raw(b'{"training_step": 2, "recorded_at": "2026-03-01T12:00:00", "reward/mean": 0.5}\n')
    follower.read([])
    assert follower.spans == [AttemptSpan(1, 1, 1)]
