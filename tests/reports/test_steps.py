from __future__ import annotations

import pytest

from art_core.metrics.catalogue import builtin_taxonomy
from art_core.metrics.history import read_rows
from art_core.reports.steps import StepValues


def curves(log, keys=None):
    values = StepValues(builtin_taxonomy(), keys)
    for row, _ in read_rows(log.path):
        values.add(row, row.metrics)
    return values.curves


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
    assert curves(log, {"reward/mean"}) == {"reward/mean": {}}
