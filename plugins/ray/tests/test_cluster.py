"""A cluster of three nodes on this machine: rewards as with `local`, and lost nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import pytest

import art_core as art
import art_ray
from waiting import until_async

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.timeout(900)]

COMMON = {
    "device": "cpu",
    "dtype": "float32",
    "lora_rank": 4,
    "lora_alpha": 8,
    "deterministic": True,
    "progress": False,
    "gpu_cost_per_hour_usd": 1.0,
}
QUESTIONS = ("Is the sky blue?", "Is fire cold?")
STEPS = 3
DRIVER = os.getpid()


async def rollout(model, question, seed):
    """Ask for one word; lower-case letters are worth most: a tiny model can learn that."""
    ask = {"role": "user", "content": f"Answer yes, no or maybe. {question}"}
    answer = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[ask], max_tokens=8, seed=seed
    )
    choice = answer.choices[0]
    reward = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8
    return art.Trajectory(messages_and_choices=[ask, choice], reward=reward)


@art.track_api_cost(
    source="judge",
    provider="openai",
    model_name="gpt-4.1",
    prompt_per_million=1000.0,
    completion_per_million=0.0,
)
def judged():
    return {"usage": {"prompt_tokens": 1000, "completion_tokens": 1}}


async def judged_elsewhere(model, question, seed):
    trajectory = await rollout(model, question, seed)
    trajectory.metrics["elsewhere"] = os.getpid() != DRIVER
    judged()
    return trajectory


async def failing(model):
    raise KeyError(f"no such question of {model.name}")


def centered(before=lambda: None):
    """Advantages of our own, so that a test can be there when a trainer computes them."""

    def advantages(trajectories):
        before()
        mean = sum(each.reward for each in trajectories) / len(trajectories)
        return [each.reward - mean for each in trajectories]

    return art.AdvantageSpec(name="centered", create=lambda: advantages)


async def trained(model, steps, *, rollout=rollout, **options):
    for step in range(await model.get_step(), steps):
        groups = await art.gather_trajectory_groups(
            (
                art.TrajectoryGroup(
                    rollout(model, question, 100 * step + seed) for seed in range(4)
                )
                for question in QUESTIONS
            ),
            pbar_desc=None,
            max_exceptions=0,
        )
        given = {"learning_rate": 1e-2, "mask_truncated": False, "advantage_fn": centered()}
        await model.train(groups, **{**given, **options})


def rewards(model):
    rows = art.open_run(model.run_dir).rows(split="train")
    # the row of what was paid at the end has none
    return [row.metrics["reward/mean"] for row in rows if "reward/mean" in row.metrics]


@pytest.fixture(scope="module")
def expected(tiny_directory, tmp_path_factory):
    """The rewards of the backend `local`, with the threads of an actor that has one CPU."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums is that of the actors

    async def local():
        model = art.TrainableModel(
            name="here",
            project="ray",
            base_model=str(tiny_directory),
            base_path=tmp_path_factory.mktemp("local"),
            sinks=[],
        )
        await model.register(art.backend("local", **COMMON))
        await trained(model, STEPS)
        await model.backend.close()
        await model.close()
        return rewards(model)

    try:
        found = asyncio.run(local())
    finally:
        torch.set_num_threads(threads)
    assert len(set(found)) == STEPS
    return found


@pytest.fixture
async def backend(cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import it
    made = art.backend(
        "ray",
        trainer={"num_cpus": 0.5, "resources": {"model": 1}},
        engines={"num_cpus": 0.5, "replicas": 2, "resources": {"model": 1}},
        rollouts={"num_cpus": 1},
        strategy="SPREAD",
        **COMMON,
    )
    yield made
    await made.close()


async def test_nodes_are_killed_and_the_rewards_are_those_of_one_process(
    cluster, backend, make_model, expected, tmp_path
):
    """Step 1 after a replica was killed, step 2 while the trainer's node is killed, step 3 with
    rollouts as tasks.
    """
    in_step_2, held = tmp_path / "step 2", tmp_path / "held"

    def hold():
        if in_step_2.exists() and not held.exists():
            held.touch()
            time.sleep(60)  # the node is killed meanwhile

    async with make_model() as model:
        await model.register(backend)
        trainer, replica, *_ = backend.places(model)
        os.kill(replica.pid, signal.SIGKILL)
        await trained(model, 1)

        in_step_2.touch()
        training = asyncio.create_task(trained(model, 2, advantage_fn=centered(hold)))
        await until_async(lambda: held.exists() or training.done(), within_s=120)
        assert not training.done()
        killed = next(node for node in cluster.list_all_nodes() if node.node_id == trainer.node_id)
        cluster.remove_node(killed, allow_graceful=False)
        await training

        await trained(model, 3, rollout=art_ray.remote_rollout(judged_elsewhere))
        assert rewards(model) == expected
        assert all(place.node_id != trainer.node_id for place in backend.places(model))
        with pytest.raises(KeyError, match="no such question"):
            await art_ray.remote_rollout(failing, num_cpus=0.5)(model)
        assert [c.step for c in await backend.checkpoints(model)] == [1, 2, 3]
        rows = list(art.open_run(model.run_dir).rows(split="train"))
        assert [row.metrics["throughput/trainer_restarts"] for row in rows] == [0, 1, 0]
        assert sum(row.metrics["throughput/engine_restarts"] for row in rows) >= 1
        assert all(row.metrics["costs/gpu"] > 0 for row in rows)
        assert rows[2].metrics["reward/elsewhere"] == 1
        assert rows[2].metrics["costs/train/judge"] == pytest.approx(8.0)  # a dollar for each


async def test_a_cluster_without_room_names_what_was_asked_for_and_what_is_free(
    cluster, make_model
):
    backend = art.backend("ray", trainer={"num_cpus": 64}, start_timeout_s=1, **COMMON)
    async with make_model() as model:
        with pytest.raises(art.BackendError, match=r"within 1 s: asked for .*'CPU': 64.*free are"):
            await model.register(backend)
    await backend.close()
