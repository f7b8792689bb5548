"""Training again from stored attempts: the same steps, other options, no money for rollouts."""

import asyncio

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.log.rundir import append_options, read_options
from art_core.testing.echo import EchoBackend

GPU_USD = 36.0


@attrs.define
class Drifting(EchoBackend):
    """A backend whose steps state how well stored attempts represent its policy."""

    shares: tuple[float, ...] = ()

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        share = self.shares[result.step - 1] if self.shares else 1.0
        measured = {"loss/train": 0.5 / result.step, "loss/effective_sample_size": share}
        return attrs.evolve(result, metrics={**result.metrics, **measured})


async def trained(path, steps=3, backend=None, **options):
    """Train a run whose rollouts cost money; return it, to read."""
    model = art.TrainableModel(
        name="agent", project="p", base_model="echo-base", base_path=path, sinks=[]
    )
    backend = backend or Drifting(gpu_cost_per_hour_usd=GPU_USD)
    await model.register(backend)
    client = model.openai_client()

    async def rollout(reward):
        messages = [{"role": "user", "content": f"be {reward}"}]
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages
        )
        art.Model.metrics_builder(model, "train").add_cost("judge/grader", 0.25)
        return art.Trajectory(messages_and_choices=[*messages, answer.choices[0]], reward=reward)

    for step in range(steps):
        groups = await art.gather_trajectory_groups(
            [art.TrajectoryGroup(rollout(reward) for reward in (0.0, 1.0))]
        )
        await model.train(groups, learning_rate=1e-5 * (step + 1), **options)
    for opened in (client, model, backend):
        await opened.close()
    return art.open_run(model.run_dir)


@pytest.fixture
def run(tmp_path):
    return asyncio.run(trained(tmp_path))


def weights(run):
    manifests = [path / "manifest.json" for path in run.checkpoints().values()]
    return [path.read_text() for path in manifests]


async def again(run, steps=None, shares=(), **options):
    backend = Drifting(gpu_cost_per_hour_usd=GPU_USD, shares=shares)
    try:
        return await art.retrain(run, steps, backend=backend, **{"name": "again", **options})
    finally:
        await backend.close()


async def test_equal_options_give_equal_weights_and_cost_no_rollout(tmp_path):
    run = await trained(tmp_path)
    seen = []
    done = await again(run, on_step=seen.append)
    assert [each.step for each in done.steps] == [1, 2, 3]
    assert seen == list(done.steps)
    assert weights(done.run) == weights(run)
    assert done.run.curve("loss/learning_rate") == run.curve("loss/learning_rate")
    assert done.stopped is None
    assert run.costs().total["all"] > 1.5
    assert set(done.run.costs().total) == {"all", "gpu"}
    assert done.steps[1].original["loss/train"] == done.steps[1].metrics["loss/train"] == 0.25
    assert done.run.model()["config"]["retrained_from"] == run.name
    assert done.run.name == "p/again"


async def test_other_options_replace_those_of_each_step(tmp_path):
    run = await trained(tmp_path, scale_rewards=True)
    done = await again(run, [1, 2], learning_rate=3e-5)
    assert done.run.curve("loss/learning_rate") == {1: 3e-5, 2: 3e-5}
    assert read_options(done.run.path, 2) == {"learning_rate": 3e-5, "scale_rewards": True}


async def test_a_later_step_begins_at_the_checkpoint_before_it(tmp_path):
    run = await trained(tmp_path)
    done = await again(run, [3])
    assert weights(done.run) == weights(run)[1:]


async def test_it_stops_when_the_attempts_no_longer_represent_the_policy(tmp_path):
    run = await trained(tmp_path)
    done = await again(run, shares=(0.9, 0.4, 0.1))
    assert [each.step for each in done.steps] == [1, 2]
    assert "fell to 40% at step 2, below 50%" in done.stopped
    assert (await again(run, shares=(0.9, 0.4, 0.1), name="b", min_sample_size=0)).stopped is None


async def test_what_is_not_stored_is_refused(tmp_path):
    run = await trained(tmp_path)
    for steps, said in (
        ([3, 4], "no attempts of step 4; stored: 1 to 3"),
        ([1, 3], "must follow one another"),
        ([], "no attempts of step 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            await again(run, steps)
    with pytest.raises(ConfigError, match="a run named 'agent' already"):
        await again(run, name="agent")
    empty = art.LoggedRun(tmp_path / "none" / "models" / "x")
    with pytest.raises(ConfigError, match="stored: none"):
        await again(empty)


async def test_a_missing_checkpoint_is_named(tmp_path):
    run = await trained(tmp_path, save_checkpoint=False)
    with pytest.raises(ConfigError, match="no checkpoint of step 1, at which step 2 begins"):
        await again(run, [2])


async def test_a_loss_that_was_an_object_is_asked_for(tmp_path):
    spec = art.LossSpec(name="mine", create=lambda: len)
    run = await trained(tmp_path, steps=2, loss_fn=spec)
    with pytest.raises(ConfigError, match=r"step 1 of p/agent .*LossSpec 'mine'.* --set loss_fn="):
        await again(run)
    assert [each.step for each in (await again(run, loss_fn="gspo")).steps] == [1, 2]


def test_options_are_read_back_and_a_torn_line_is_passed_over(tmp_path):
    assert read_options(tmp_path, 1) == {}
    append_options(tmp_path, 1, {"learning_rate": 1e-5, "loss_fn": len})
    append_options(tmp_path, 2, {"learning_rate": 2e-5})
    append_options(tmp_path, 1, {"learning_rate": 3e-5})
    with (tmp_path / "options.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "opt')
    assert read_options(tmp_path, 1) == {"learning_rate": 3e-5}
    assert read_options(tmp_path, 2) == {"learning_rate": 2e-5}


async def test_options_that_cannot_be_kept_do_not_undo_the_step(tmp_path, caplog):
    backend = EchoBackend()
    model = art.TrainableModel(
        name="agent", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    (model.run_dir / "options.jsonl").mkdir()
    attempts = [art.Trajectory(reward=r) for r in (0.0, 1.0)]
    result = await model.train([art.TrajectoryGroup(attempts)])
    assert result.step == 1
    assert "options and trajectories of step 1" in caplog.text
    await model.close()
    await backend.close()
