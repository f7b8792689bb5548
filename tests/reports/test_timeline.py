from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest

from art_core.log.rows import read_rows
from art_core.log.timeline import Timeline
from art_core.metrics.taxonomy import builtin_taxonomy

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def line(log, keeps=None):
    return Timeline.of_log(log.path, builtin_taxonomy(), keeps)


def curves(log, keeps=None):
    return line(log, keeps).curves()


def test_what_adds_up_is_the_sum_of_a_step_s_rows(log):
    log.add(step=1, time__step_wall_s=40, data__step_actor_tokens=5, costs__all=1, reward__mean=0.5)
    log.add(step=1, time__step_wall_s=20, loss__train=2, costs__cum__all=1, time__cum__wall_s=60)
    log.add(step=1, split="val", costs__all=0.5, data__step_actor_tokens=3, val__reward=0.75)
    log.add(step=1, split="val", costs__cum__all=2, val__reward=0.25)
    assert {key: curve[1] for key, curve in curves(log).items()} == {
        "time/step_wall_s": 60,
        "data/step_actor_tokens": 8,
        "costs/all": 1.5,
        "costs/cum/all": 2,
        "reward/mean": 0.5,
        "loss/train": 2,
        "time/cum/wall_s": 60,
        "val/reward": 0.25,
    }


@pytest.mark.parametrize("learned", ["reward__mean", "loss__train"])
def test_an_attempt_from_an_older_step_takes_the_place_of_later_ones(log, learned):
    for step in (1, 2, 3):
        log.add(step=step, attempt=1, costs__all=1.0, **{learned: step, "time__step_wall_s": 10})
        log.add(step=step, attempt=1, split="val", val__reward=step)
    log.add(step=2, attempt=2, costs__all=1.0, **{learned: 9, "time__step_wall_s": 5})
    found = curves(log)
    assert found[learned.replace("__", "/")] == {1: 1, 2: 9}
    assert found["val/reward"] == {1: 1}
    assert found["time/step_wall_s"] == {1: 10, 2: 5}
    assert found["costs/all"] == {1: 1, 2: 2, 3: 1}


def test_evaluations_and_single_metrics_of_older_steps_take_no_place(log):
    for step in (1, 2, 3):
        log.add(step=step, reward__mean=step)
    log.add(step=1, attempt=2, split="val", val__reward=0.5)
    log.add(step=1, attempt=2, own__x=7)
    found = curves(log)
    assert found["reward/mean"] == {1: 1, 2: 2, 3: 3}
    assert found["own/x"] == {1: 7}


def test_an_attempt_that_goes_on_takes_no_place(log):
    log.add(step=1, reward__mean=1)
    log.add(step=2, attempt=2, reward__mean=2)
    log.add(step=1, attempt=2, reward__mean=3)
    assert curves(log)["reward/mean"] == {1: 3, 2: 2}


def test_only_the_keys_that_are_asked_for_are_kept(log):
    log.add(step=2, reward__mean=1, loss__train=1)
    log.add(step=1, attempt=2, loss__train=1)
    assert curves(log, lambda key: key == "reward/mean") == {"reward/mean": {}}
    assert line(log).logged == {"reward/mean", "loss/train"}


def test_what_an_attempt_logged_before_it_trained_stays_on_the_line(log):
    for step in (1, 2, 3, 4):
        log.add(step=step, reward__mean=step, time__step_wall_s=10)
    log.add(step=2, attempt=2, time__step_wall_s=4, costs__cum__all=5)
    log.add(step=4, attempt=2, costs__all=1, costs__cum__all=6)
    log.add(step=2, attempt=2, reward__mean=9, time__step_wall_s=3, costs__cum__all=7)
    log.add(step=2, attempt=2, loss__train=1, time__step_wall_s=2)
    assert curves(log) == {
        "reward/mean": {1: 1, 2: 9},
        "time/step_wall_s": {1: 10, 2: 9},
        "costs/cum/all": {2: 7},
        "costs/all": {4: 1},
        "loss/train": {2: 1},
    }
    assert line(log).trained == {1, 2}


def test_totals_that_the_first_row_of_a_resumed_attempt_lacks_stay(log):
    log.add(step=1, reward__mean=1, costs__cum__all=1)
    log.add(step=2, reward__mean=2, costs__cum__all=2)
    log.add(step=2, attempt=2, split="val", costs__cum__all=3)
    log.add(step=2, attempt=2, reward__mean=3)
    assert line(log).curve("costs/cum/all") == {1: 1, 2: 3}
    log.add(step=1, attempt=3, loss__train=3)
    assert line(log).curve("costs/cum/all") == {1: 3}


def test_totals_of_a_row_of_an_older_step_stand_at_the_furthest_step(log):
    log.add(step=1, reward__mean=1, costs__cum__all=1, time__wall_clock_sec=5)
    log.add(step=2, reward__mean=1, costs__cum__all=2, time__wall_clock_sec=6)
    log.add(step=1, split="val", val__reward=1, costs__cum__all=3, time__wall_clock_sec=7)
    found = line(log)
    assert found.curve("costs/cum/all") == {1: 1, 2: 3}
    assert found.curve("time/wall_clock_sec") == {1: 5, 2: 7}
    assert (found.furthest_step, found.totals["costs/cum/all"]) == (2, 3)


def test_steps_that_were_replaced_more_than_once_count_once(log):
    for attempt, first in enumerate((1, 4, 2), 1):
        for step in range(first, 6):
            log.add(step=step, attempt=attempt, reward__mean=attempt, costs__all=1)
    log.add(step=3, attempt=4, loss__train=1)
    assert curves(log)["reward/mean"] == {1: 1, 2: 3}
    assert curves(log)["costs/all"] == {1: 1, 2: 2, 3: 2, 4: 3, 5: 3}
    assert line(log).trained == {1, 2, 3}


def art_row(step, **metrics):
    given = {key.replace("__", "/"): value for key, value in metrics.items()}
    return orjson.dumps({"step": step, "recorded_at": "2026-05-01T00:00:00", **given}) + b"\n"


def test_a_run_of_art_that_goes_back_to_an_older_step_has_one_line_too(log):
    for step, reward in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.5)):
        log.raw(art_row(step, train__reward=reward, costs__all=1.0))
        log.raw(art_row(step, loss__train=reward))
        log.raw(art_row(step - 1, val__reward=reward))
    found = line(log)
    assert found.curve("reward/mean") == {1: 0.1, 2: 0.5}
    assert found.curve("val/reward") == {0: 0.1, 1: 0.5}
    assert found.curve("costs/all") == {1: 1, 2: 2, 3: 1}
    assert found.trained == {1, 2}


def test_a_step_was_recorded_when_its_newest_row_was(log):
    for step in (1, 2, 1):
        log.add(step=step)
    assert line(log).times() == {
        1: WHEN + timedelta(minutes=3),
        2: WHEN + timedelta(minutes=2),
    }


def test_an_empty_line_has_nothing(log):
    found = line(log)
    assert (found.curve("reward/mean"), found.trained, found.furthest_step) == ({}, set(), -1)
    assert not found.has_trained


def changes(log):
    found = Timeline(builtin_taxonomy())
    return [found.change(row) for row, _ in read_rows(log.path)]


def test_a_change_has_the_values_of_the_step_as_they_are_now(log):
    log.add(step=1, reward__mean=1, time__step_wall_s=10, costs__cum__all=1)
    log.add(step=1, loss__train=2, time__step_wall_s=5)
    log.add(step=2, reward__mean=2)
    log.add(step=1, split="val", time__step_wall_s=1, costs__cum__all=2)
    assert [change.values for change in changes(log)] == [
        {1: {"reward/mean": 1, "time/step_wall_s": 10, "costs/cum/all": 1}},
        {1: {"loss/train": 2, "time/step_wall_s": 15}},
        {2: {"reward/mean": 2}},
        {1: {"time/step_wall_s": 16}, 2: {"costs/cum/all": 2}},
    ]


def test_a_change_that_replaces_steps_has_what_the_line_has_from_there_on(log):
    for step in (1, 2, 3):
        log.add(step=step, reward__mean=step, costs__all=1)
    log.add(step=1, attempt=2, split="val", val__reward=1)
    log.add(step=2, attempt=2, reward__mean=5, costs__all=1)
    log.add(step=3, attempt=3, reward__mean=6)
    first, *_, evaluated, again, on = changes(log)
    assert (first.begins_at, first.line) == (1, None)
    assert (evaluated.begins_at, evaluated.line) == (None, None)
    assert again.begins_at == 2
    assert again.values == {2: {"reward/mean": 5, "costs/all": 2}, 3: {"costs/all": 1}}
    assert again.line is not None
    assert (on.begins_at, on.line, on.values) == (3, None, {3: {"reward/mean": 6}})
