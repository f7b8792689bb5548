"""Rows of a trained run: what its dollars bought."""

import math

import pytest

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

DOLLAR = {"prompt_per_million": 1e6, "completion_per_million": 1e6}


@art.track_api_cost(source="judge", provider="acme", model_name="judge")
async def judge(tokens):
    return {"usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}}


@pytest.fixture
async def model(tmp_path):
    async with art.TrainableModel(
        name="agent", project="p", base_model="base", base_path=tmp_path, sinks=[],
        plugins=art.Plugins(),
    ) as made:  # fmt: skip
        backend = EchoBackend(gpu_cost_per_hour_usd=3600.0)
        await made.register(backend)
        made.metrics_builder().register_model_pricing("judge", **DOLLAR)
        yield made
        await backend.close()


async def attempt(model, reward, *, judged=0, **options):
    messages = [{"role": "user", "content": "echo"}]
    answer = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, **options
    )
    if judged:
        await judge(judged)
    return art.Trajectory(messages_and_choices=[*messages, answer.choices[0]], reward=reward)


async def failing(model):
    raise ValueError("bad")


def parts_of(metrics, prefix="signal/"):
    return {
        key.removeprefix(prefix): usd
        for key, usd in metrics.items()
        if key.startswith(prefix) and not key.startswith(prefix + "cum/")
    }


async def test_the_dollars_of_each_row_are_divided_by_what_became_of_its_attempts(model):
    groups = await art.gather_trajectory_groups(
        [
            art.TrajectoryGroup(attempt(model, reward, judged=3) for reward in (0, 1)),
            art.TrajectoryGroup(attempt(model, 1, judged=1) for _ in range(2)),
            art.TrajectoryGroup(
                [
                    *(attempt(model, r, max_tokens=m) for r, m in ((0, 99), (1, 99), (1, 2))),
                    failing(model),
                ]
            ),
        ]
    )
    held_out = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([attempt(model, 1, judged=5)])]
    )
    await model.log(held_out, split="val")
    await model.train(groups)
    rows = [*LoggedRun(model.run_dir).rows()]
    for row in rows:
        assert math.fsum(parts_of(row.metrics).values()) == row.metrics["costs/all"]
    val, train = (row.metrics for row in rows)
    assert parts_of(val) == {"evaluation": 5.0}
    assert train["costs/train/judge"] == 8.0
    assert train["signal/learned"] >= 6.0
    assert train["signal/wasted/no_spread"] >= 2.0
    assert train["signal/wasted/failed"] > 0 < train["signal/wasted/truncated"]
    assert (
        parts_of(train, "signal/cum/")
        == pytest.approx(parts_of(train) | {"evaluation": 5.0}, abs=1e-9)
        or train["signal/cum/evaluation"] > 5.0
    )
    total = math.fsum(parts_of(train, "signal/cum/").values())
    assert total == pytest.approx(train["costs/cum/all"], abs=1e-9)


async def test_options_of_a_backend_only_do_not_keep_a_row_from_being_divided(model, tmp_path):
    from art_core.rl.config import used_config

    assert used_config({"own": 1, "loss_fn": "ppo"}, {}, {}).loss_fn == "ppo"
    assert used_config({"learning_rate": "auto"}, {}, {}) is None


async def test_a_supervised_step_learned_all_that_it_cost(model):
    lesson = art.Trajectory(
        messages_and_choices=[
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        ]
    )  # fmt: skip
    await model.train_sft([lesson])
    (row,) = [*LoggedRun(model.run_dir).rows()]
    assert parts_of(row.metrics) == {"learned": row.metrics["costs/all"]}
