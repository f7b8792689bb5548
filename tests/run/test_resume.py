"""The trained steps of the log, compared with the backend's checkpoints."""

from __future__ import annotations

import shutil

import pytest

import art_core as art
from art_core.log.rows import last_trained_step
from art_core.testing.echo import EchoBackend

GROUPS = [art.TrajectoryGroup([art.Trajectory(reward=r) for r in (0.0, 1.0)])]


class Returning(EchoBackend):
    """Goes back to an older step when it is asked to."""

    async def register(self, model, *, step=None):
        for checkpoint in (model.run_dir / "checkpoints").glob("*"):
            if step is not None and int(checkpoint.stem) > step:
                shutil.rmtree(checkpoint)
        return await super().register(model)


@pytest.fixture
async def opened(tmp_path):
    """Register the run's model anew with a backend; all are closed."""
    made = []

    async def open_model(backend, **options):
        if made:
            await made[-1].close()
        model = art.TrainableModel(
            name="m", project="p", base_model="b", base_path=tmp_path, sinks=[]
        )
        made.append(model)
        await model.register(backend, **options)
        return model

    yield open_model
    for model in made:
        await model.close()


async def trained(opened, backend, steps):
    model = await opened(backend)
    for _ in range(steps):
        await model.train(GROUPS)
    await model.log(metrics={"val/reward": 1.0}, split="val", step=9)
    return model.run_dir / "checkpoints"


async def test_a_run_whose_checkpoints_are_gone_is_not_restarted(opened):
    checkpoints = await trained(opened, Returning(), 3)
    shutil.rmtree(checkpoints)
    backend = Returning()
    with pytest.raises(art.BackendError, match=r"p/m has trained step 3.*step=0"):
        await opened(backend)
    assert backend._models == {}
    again = await opened(backend, step=0)
    assert await again.get_step() == 0


async def test_a_backend_that_cannot_go_back_begins_again_with_a_warning(opened, caplog):
    shutil.rmtree(await trained(opened, EchoBackend(), 2))
    model = await opened(EchoBackend())
    assert await model.get_step() == 0
    assert "has trained step 2, but the backend has no checkpoint of it" in caplog.text


async def test_missing_newest_checkpoints_are_a_warning(opened, caplog):
    checkpoints = await trained(opened, Returning(), 3)
    shutil.rmtree(checkpoints / "0003")
    shutil.rmtree(checkpoints / "0002")
    model = await opened(Returning())
    assert await model.get_step() == 1
    assert "has no checkpoint after step 1" in caplog.text


async def test_a_whole_run_resumes_without_a_word(opened, caplog):
    await trained(opened, Returning(), 2)
    caplog.clear()
    model = await opened(Returning())
    assert await model.get_step() == 2
    assert "has trained step" not in caplog.text


async def test_going_back_trains_the_steps_after_it_again(opened, caplog):
    await trained(opened, Returning(), 3)
    model = await opened(Returning(), step=1)
    caplog.clear()
    assert (await model.train(GROUPS)).step == 2
    # the last attempt counts: step 2 is where the run stands, not 3
    assert await (await opened(Returning())).get_step() == 2
    assert "has trained step" not in caplog.text


async def test_a_step_that_has_a_checkpoint_and_no_row_is_trained_again(opened, caplog):
    await trained(opened, Returning(), 2)
    model = await opened(Returning())
    log = model.run.history.path
    whole = log.read_bytes()
    await model.train(GROUPS)
    await model.close()
    log.write_bytes(whole)  # as after a kill between the checkpoint and the row
    model = await opened(Returning())
    assert await model.get_step() == 2
    assert "step 3 of p/m has a checkpoint and no row" in caplog.text
    assert (await model.train(GROUPS)).step == 3


async def test_fine_tuning_goes_back_to_the_last_checkpoint_that_has_a_row(opened):
    lesson = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    lessons = [art.Trajectory(messages_and_choices=lesson)] * 6
    options = {"batch_size": 1, "checkpoint_every": 2}
    model = await opened(Returning())
    await model.train_sft(lessons, **options)
    checkpoints, log = model.run_dir / "checkpoints", model.run.history.path
    await model.close()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    for later in (5, 6):
        shutil.rmtree(checkpoints / f"{later:04d}", ignore_errors=True)
    model = await opened(Returning())  # killed between the checkpoint of step 4 and its row
    assert await model.get_step() == 2  # step 3 has no checkpoint
    await model.train_sft(lessons, **options)
    assert [row.step for row in art.open_run(model.run_dir).rows()] == [1, 2, 3, 3, 4, 5, 6]


async def test_a_checkpoint_without_a_row_stays_when_there_is_none_to_go_back_to(opened, caplog):
    checkpoints = await trained(opened, Returning(), 2)
    model = await opened(Returning())
    log = model.run.history.path
    whole = log.read_bytes()
    await model.train(GROUPS)
    await model.close()
    log.write_bytes(whole)
    shutil.rmtree(checkpoints / "0002")
    assert await (await opened(Returning())).get_step() == 3


async def test_steps_that_were_not_trained_by_this_model_need_no_rows(opened):
    backend = Returning()
    model = await opened(backend)
    await backend.train(model, GROUPS)
    assert await (await opened(Returning())).get_step() == 1


async def test_going_back_needs_a_backend_that_can_and_a_new_attempt(opened):
    backend = Returning()
    model = await opened(backend)
    await model.train(GROUPS)
    with pytest.raises(art.ConfigError, match=r"has logged step 1.*Make the model again"):
        await model.register(backend, step=0)
    await model.close()
    with pytest.raises(art.ConfigError, match="EchoBackend can't go back to step 0"):
        await opened(EchoBackend(), step=0)


def test_lines_that_are_no_rows_do_not_hide_the_last_trained_step(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"data/step_num_gradient_steps": 1\n{"step": 4}\n')
    assert last_trained_step(path) == 0
