"""A process is killed after a step was trained, before its row, and no step back can be loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import ClassVar

import pytest

import art_core as art
from art_core.data.store import append_groups, trajectory_file
from art_core.model.interrupted import BegunStep
from art_core.testing.echo import EchoBackend

KILLED = """
import asyncio, os, signal, sys
import art_core as art
from art_core.testing.echo import EchoBackend
base, killed_at = sys.argv[1], int(sys.argv[2])

class Killed(EchoBackend):
    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        if result.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

async def rollout(model, scenario):
    reply = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[{"role": "user", "content": f"{scenario}"}]
    )
    return art.Trajectory(messages_and_choices=[reply.choices[0]], reward=float(scenario))

async def main():
    backend = Killed()
    model = art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=base, backend=backend, sinks=[]
    )
    await art.pipeline(
        model, range(6), rollout, attempts=2, min_batch_size=2, max_batch_size=2,
        zero_variance="drop", progress=False,
    )
    await model.close()
    await backend.close()

asyncio.run(main())
"""


def test_the_groups_of_the_step_are_trained_once_and_have_a_row(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run([*command, "2"], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    ran = subprocess.run([*command, "0"], check=True, timeout=60, capture_output=True, text=True)
    assert "step 2 of p/m was trained, and interrupted before its row" in ran.stderr
    run = art.open_run(tmp_path / "p" / "models" / "m")
    rows = [row for row in run.rows(split="train") if "reward/mean" in row.metrics]
    assert [(row.attempt, row.step) for row in rows] == [(1, 1), (2, 2), (2, 3)]
    assert "loss/train" not in rows[1].metrics
    assert rows[1].cursor > rows[0].cursor
    trained = [g.metadata["scenario_id"] for row in rows for g in run.groups(row.step)]
    assert sorted(trained) == [str(n) for n in range(6)]
    assert not (run.path / "begun_step.json").exists()


def group(reward):
    return art.TrajectoryGroup([art.Trajectory(reward=reward), art.Trajectory(reward=0.0)])


def trained_rows(model):
    rows = art.open_run(model.run_dir).rows(split="train")
    return [row for row in rows if "data/step_num_gradient_steps" in row.metrics]


@pytest.fixture
def backend():
    return EchoBackend()


@pytest.fixture
def made(tmp_path, backend):
    def make():
        return art.TrainableModel(
            name="m", project="p", base_model="b", base_path=tmp_path, backend=backend, sinks=[]
        )

    return make


async def test_groups_of_an_earlier_try_are_not_in_the_row(made, backend, caplog):
    model = made()
    await model.register()
    await model.train([group(1.0)])
    file = trajectory_file(model.run_dir, "train", 2)
    append_groups(file, [group(9.0)])
    start = append_groups(file, [group(0.5)])
    BegunStep(2, start, None).keep(model.run_dir)
    await backend.train(model, [group(0.5)])
    await model.close()
    again = made()
    await again.register()
    _, row = trained_rows(again)
    assert (row.step, row.metrics["reward/mean"]) == (2, 0.25)
    assert [g.rewards for g in art.open_run(again.run_dir).groups(2)] == [[0.5, 0.0]]
    assert "interrupted before its row" in caplog.text
    await again.train([group(1.0)])
    assert [row.step for row in trained_rows(again)] == [1, 2, 3]
    await again.close()
    await backend.close()


async def test_a_call_that_failed_leaves_no_note_that_another_step_could_take(made, backend):
    class Failing(EchoBackend):
        notes: ClassVar[list[bool]] = []

        async def train(self, model, groups, **options):
            self.notes.append((model.run_dir / "begun_step.json").exists())
            if len(self.notes) == 1:
                raise TimeoutError
            return await super().train(model, groups, **options)

    model, failing = made(), Failing()
    await model.register(failing)
    with pytest.raises(TimeoutError):
        await model.train([group(1.0)])
    assert not (model.run_dir / "begun_step.json").exists()
    await model.train([group(1.0)])
    await model.train([group(1.0)])
    assert failing.notes == [True, False, True]
    await model.close()
    await failing.close()
    await backend.close()


@pytest.mark.parametrize("stored", ["", "{}", '{"step": 7, "start": 0, "cursor": null}'])
async def test_a_note_that_does_not_fit_changes_nothing(made, backend, stored):
    model = made()
    await model.register()
    await model.train([group(1.0)])
    await backend.train(model, [group(0.5)])
    (model.run_dir / "begun_step.json").write_text(stored)
    await model.close()
    again = made()
    await again.register()
    assert [row.step for row in trained_rows(again)] == [1]
    await again.close()
    await backend.close()


async def test_the_row_is_written_without_the_file_of_its_groups(made, backend):
    model = made()
    await model.register()
    await backend.train(model, [group(0.5)])
    BegunStep(1, 0, 4).keep(model.run_dir)
    await model.close()
    again = made()
    await again.register()
    (row,) = trained_rows(again)
    assert (row.step, row.cursor) == (1, 4)
    await again.close()
    await backend.close()
