"""One step from end to end, in the order of docs/walk.md.

An agent answers "yes" or "no"; four attempts make a group, two groups make a step. The echo backend
trains nothing, but everything around it is real: the endpoint, the client, the log, the sinks.
"""

import logging

import attrs
import orjson
import pytest

import art_core as art
from art_core.data.store import read_groups, trajectory_file
from art_core.log.rows import read_rows
from art_core.testing.echo import EchoBackend


@attrs.define
class Notebook:
    """A stranger's sink."""

    rows: list = attrs.field(factory=list)
    events: list = attrs.field(factory=list)

    def open(self, run):
        self.events.append(f"open {run.project}/{run.name}, attempt {run.attempt}")

    def write(self, rows):
        self.rows += rows

    def close(self, run):
        self.events.append("close")


@pytest.fixture
def notebook():
    return Notebook()


@pytest.fixture
def model(tmp_path, notebook):
    spec = art.SinkSpec(name="notebook", create=lambda: notebook, summary="keeps rows")
    return art.TrainableModel(
        name="agent-001", project="demo", base_model="echo-base", base_path=tmp_path, sinks=[spec]
    )


async def rollout(model, question, answer):
    """Ask the model through its OpenAI endpoint; "yes" is worth 1."""
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": answer}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = float(completion.choices[0].message.content == "yes")
    trajectory.metrics["length"] = len(completion.choices[0].message.content)
    return trajectory


async def gather(model):
    answers = {"Is water wet?": ["yes", "no", "no", "no"], "Is fire cold?": ["no"] * 4}
    return await art.gather_trajectory_groups(
        art.TrajectoryGroup(
            (rollout(model, question, answer) for answer in each),
            metadata={"scenario_id": question},
        )
        for question, each in answers.items()
    )


async def test_a_step_from_rollouts_to_sinks(model, notebook):
    backend = EchoBackend(gpu_cost_per_hour_usd=3600.0)  # a dollar a second
    await model.register(backend)

    # Rollouts become trajectories, and the choices carry the engine's own tokens.
    groups = await gather(model)
    assert [group.rewards for group in groups] == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    choice = groups[0].trajectories[0].messages_and_choices[-1]
    assert len(choice.token_ids) == len(choice.logprobs.content) > 0
    assert groups[0].trajectories[0].final_policy_version == 0

    # A judge that costs money is tracked beside them.
    @art.track_api_cost(source="llm_judge/style", provider="openai", model_name="openai/gpt-4.1")
    async def judge():
        return {"usage": {"prompt_tokens": 1000, "completion_tokens": 500}}

    with model.metrics_builder("train").activate_context():
        await judge()

    # Trajectories become a training step, and the step becomes one row with what it cost.
    result = await model.train(groups, learning_rate=1e-5)
    assert result.step == 1
    (row,) = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert (row.seq, row.attempt, row.step, row.split) == (1, 1, 1, "train")
    assert row.metrics["reward/mean"] == 0.125
    assert row.metrics["reward/std_dev"] == pytest.approx((0.1875**0.5) / 2)
    assert row.metrics["reward/length"] == 2.125
    assert row.metrics["data/step_num_trajectories"] == 8.0
    assert row.metrics["data/step_num_groups_trainable"] == 1.0
    assert row.metrics["data/cum/num_unique_scenarios"] == 2.0
    # 1,000 tokens at $2 and 500 at $8 a million
    assert row.metrics["costs/train/llm_judge/style"] == pytest.approx(0.006)
    assert row.metrics["costs/gpu"] == pytest.approx(row.metrics["time/step_trainer_s"])
    assert row.metrics["costs/all"] == pytest.approx(0.006 + row.metrics["costs/gpu"])
    assert row.metrics["costs/cum/all"] == row.metrics["costs/all"]

    # Receipts have what was bought, at which price.
    judged, held = row.receipts
    assert (judged["item"], judged["input_tokens"]) == ("openai/gpt-4.1", 1000)
    assert judged["rates"]["output_per_million"] == 8.0
    assert held["rates"] == {"usd_per_hour": 3600.0, "source": "explicit"}

    # The trajectories are on the disk, whole.
    (first, _) = read_groups(trajectory_file(model.run_dir, "train", 1))
    assert first.rewards == [1.0, 0.0, 0.0, 0.0]
    assert first.trajectories[0].messages()[-1] == {"role": "assistant", "content": "yes"}

    # The row reaches every sink.
    reports = await model.close()
    await backend.close()
    assert notebook.rows == [row]
    assert notebook.events == ["open demo/agent-001, attempt 1", "close"]
    assert reports["notebook"].undelivered == 0


async def test_the_loop_in_three_calls_counts_everything_once(model):
    backend = EchoBackend()
    await model.register(backend)
    for _ in range(2):
        groups = await gather(model)
        await model.log(groups, split="train")
        result = await backend.train(model, groups, learning_rate=1e-5)
        await model.log(metrics=result.metrics, split="train", step=result.step)
    await model.log(await gather(model), split="val")
    rows = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    assert [(row.step, row.split) for row in rows] == [
        (0, "train"),
        (1, "train"),
        (1, "train"),
        (2, "train"),
        (2, "val"),
    ]
    assert rows[-1].metrics["data/cum/num_trajectories"] == 16.0
    assert rows[-1].metrics["val/reward"] == 0.125
    assert rows[-1].metrics["val/data/step_num_trajectories"] == 8.0
    await model.close()
    await backend.close()


async def test_a_second_process_goes_on_where_the_first_one_stopped(model, notebook, tmp_path):
    first = EchoBackend()
    await model.register(first)
    await model.train(await gather(model))
    await model.close()
    await first.close()

    again = art.TrainableModel(
        name="agent-001",
        project="demo",
        base_model="echo-base",
        base_path=tmp_path,
        sinks=model.sinks,
        backend=EchoBackend(),
    )
    await again.register()
    assert await again.get_step() == 1
    result = await again.train(await gather(again))
    assert result.step == 2
    row = again.run.history.last
    assert (row.seq, row.attempt, row.step) == (2, 2, 2)
    assert row.metrics["data/cum/num_trajectories"] == 16.0
    await again.close()
    await again.backend.close()
    assert [row.seq for row in notebook.rows] == [1, 2]


async def test_a_step_without_anything_to_learn_is_said_and_still_advances(model, caplog):
    backend = EchoBackend()
    await model.register(backend)
    flat = [group for group in await gather(model) if len(set(group.rewards)) == 1]
    with caplog.at_level(logging.WARNING, "art_core"):
        assert (await model.train(flat)).step == 1
    assert "nothing to train on" in caplog.text
    status = orjson.loads((model.run_dir / "status.json").read_bytes())
    assert status["status"] == "running"
    await model.close()
    await backend.close()
