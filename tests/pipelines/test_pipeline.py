"""Rollouts, training and evaluation at the same time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from pipelined import ask, train_rows

import art_core as art
from art_core.data.dataset import epoch_order
from art_core.testing.echo import EchoBackend
from waiting import until_async

SMALL = {"attempts": 2, "min_batch_size": 2, "max_batch_size": 2, "progress": False}


async def test_an_epoch_trains_each_scenario_once_and_rows_have_its_figures(model, backend):
    result = await art.pipeline(model, range(7), ask, max_steps_off_policy=2, **SMALL)
    assert result == art.PipelineResult(step=4, steps=4, groups=7)
    assert [len(ids) for ids in backend.trained] == [2, 2, 2, 1]
    assert sorted(name for ids in backend.trained for name in ids) == [str(n) for n in range(7)]
    rows = train_rows(model)
    assert [row.step for row in rows] == [1, 2, 3, 4]
    for row in rows:
        metrics = row.metrics
        assert metrics["throughput/step_trainer_idle_s"] > 0
        assert metrics["throughput/step_actor_idle_s"] >= 0
        assert metrics["pipeline/step_num_groups_stale"] == 0
        assert metrics["pipeline/num_attempts_running"] >= 0
        assert 0 <= metrics["offpolicy/steps_mean"] <= metrics["offpolicy/steps_max"] <= 2
    assert rows[-1].metrics["time/cum/actor_s"] > 0
    assert rows[-1].metrics["data/cum/num_unique_scenarios"] == 7
    assert rows[-1].metrics["pipeline/cum/num_groups_zero_variance"] == 0


async def test_rollouts_go_on_while_a_step_is_trained(model, backend):
    begun: list[int] = []

    async def rollout(model, scenario):
        begun.append(scenario)
        return await ask(model, scenario)

    async def before(step):
        if step == 1:
            await until_async(lambda: len(begun) > 4)

    backend.before_step = before
    result = await art.pipeline(model, range(8), rollout, max_concurrent=2, **SMALL)
    assert result.step == 4


async def test_rollouts_stop_when_enough_groups_are_ahead(model, backend):
    begun: Counter[int] = Counter()
    seen: list[int] = []

    async def rollout(model, scenario):
        begun[scenario] += 1
        return await ask(model, scenario)

    async def before(step):
        await asyncio.sleep(0.1)
        seen.append(len(begun))

    backend.before_step = before
    await art.pipeline(model, range(8), rollout, max_steps_off_policy=0, **SMALL)
    assert seen == [2, 4, 6, 8]
    assert max(row.metrics["offpolicy/steps_max"] for row in train_rows(model)) == 0


async def test_evaluations_run_beside_training_at_the_weights_of_their_step(model, backend):
    backend.reply = lambda messages, step: f"step {step}"
    answers: dict[str, set[str]] = {}

    async def judge(model, scenario):
        name = model.get_inference_name()
        if name == "m@2":  # it ends when later steps have been trained
            await until_async(lambda: len(backend.trained) >= 5)
        trajectory = await ask(model, scenario)
        answer = trajectory.messages_and_choices[-1].message.content
        answers.setdefault(name, set()).add(answer)
        return trajectory

    model.keep_checkpoints = lambda stored: []
    await art.pipeline(
        model,
        range(20),
        ask,
        steps=5,
        eval_scenarios=["x", "y"],
        eval_rollout=judge,
        eval_every=2,
        save_checkpoint=False,
        **SMALL,
    )
    assert answers == {f"m@{step}": {f"step {step}"} for step in (0, 2, 4, 5)}
    rows = [row for row, _ in rows_of(model) if row.split == "val"]
    assert sorted(row.step for row in rows) == [0, 2, 4, 5]
    assert [row.step for row in rows][-3:] != [2, 4, 5]


def rows_of(model):
    from art_core.log.rows import read_rows

    return list(read_rows(model.run.history.path))


@pytest.mark.parametrize(("swap", "mixed"), [("turn", True), ("attempt", False)])
async def test_weights_swap_between_turns_or_between_attempts(model, backend, swap, mixed):
    first_turns: Counter[int] = Counter()

    async def rollout(model, scenario):
        trajectory = await ask(model, scenario)
        first_turns[scenario] += 1
        await until_async(lambda: first_turns[0] == 2)
        if scenario == 0:
            await until_async(lambda: backend.trained)
        trajectory.messages_and_choices.append({"role": "user", "content": "again"})
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=trajectory.messages()
        )
        trajectory.messages_and_choices.append(completion.choices[0])
        return trajectory

    await art.pipeline(model, range(3), rollout, swap=swap, **(SMALL | {"min_batch_size": 1}))
    assert any(row.metrics["offpolicy/mixed_share"] for row in train_rows(model)) == mixed
    assert max(row.metrics["offpolicy/steps_max"] for row in train_rows(model)) > 0


@pytest.mark.parametrize(("stale", "times"), [("refill", 2), ("drop", 1)])
async def test_a_stale_group_is_attempted_again_or_dropped(model, backend, stale, times):
    begun: Counter[int] = Counter()

    async def rollout(model, scenario):
        begun[scenario] += 1
        trajectory = await ask(model, scenario)
        if scenario == 0 and begun[0] <= 2:
            await until_async(lambda: len(backend.trained) == 3)
        return trajectory

    seed = next(n for n in range(100) if epoch_order(4, 0, n)[0] == 0)  # it begins at step 0
    options = SMALL | {"min_batch_size": 1, "max_batch_size": 1, "seed": seed}
    result = await art.pipeline(
        model, range(4), rollout, stale=stale, max_steps_off_policy=1, **options
    )
    assert (result.stale, begun[0]) == (1, 2 * times)
    assert ("0" in [name for ids in backend.trained for name in ids]) == (stale == "refill")


@pytest.mark.parametrize(
    ("zero_variance", "sizes"), [("refill", [3, 3, 2]), ("drop", [2, 2, 2, 2])]
)
async def test_groups_without_spread_are_in_the_row_and_are_refilled(
    model, backend, zero_variance, sizes
):
    async def rollout(model, scenario):
        trajectory = await ask(model, scenario)
        if scenario % 3 == 0:
            trajectory.reward = 0.5
        return trajectory

    async def alone(model, scenario):  # one group after the other, in order
        async with lock:
            return await rollout(model, scenario)

    lock = asyncio.Lock()
    options = SMALL | {"max_batch_size": 3} if zero_variance == "refill" else SMALL
    result = await art.pipeline(
        model,
        range(8),
        alone,
        zero_variance=zero_variance,
        max_steps_off_policy=0 if zero_variance == "drop" else 4,
        max_concurrent=2,
        **options,
    )
    assert result.zero_variance == 3
    assert result.groups == 8
    assert sum(len(ids) for ids in backend.trained) == 8
    if zero_variance == "drop":
        assert [len(ids) for ids in backend.trained] == sizes
    else:
        assert all(len(ids) <= 3 for ids in backend.trained)
    rows = train_rows(model)
    assert rows[-1].metrics["pipeline/cum/num_groups_zero_variance"] == 3
    assert sum(row.metrics["data/step_num_groups_submitted"] for row in rows) == 8


async def test_a_judge_gets_the_groups_of_a_step_and_may_drop_them(model, backend):
    @art.track_api_cost(
        source="judge", provider="x", model_name="j", prompt_per_million=1.0,
        completion_per_million=1.0,
    )  # fmt: skip
    async def paid():
        return {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}}

    async def rollout(model, scenario):
        await paid()
        return await ask(model, scenario)

    async def judge(group):
        await paid()
        return None if group.metadata["scenario_id"] == "0" else group

    result = await art.pipeline(model, range(4), rollout, after_each=judge, **SMALL)
    assert result.groups == 3
    assert "0" not in [name for ids in backend.trained for name in ids]
    await model.log(split="train")
    spent = rows_of(model)[-1][0].metrics["costs/cum/train/judge"]
    assert spent == pytest.approx(8 + 4)


async def test_one_that_was_ended_goes_on_where_it_was(model, backend):
    await art.pipeline(model, range(9), ask, steps=2, epochs=1, **SMALL)
    again = await art.pipeline(model, range(9), ask, steps=2, epochs=1, **SMALL)
    assert again == art.PipelineResult(step=2)
    result = await art.pipeline(model, range(9), ask, epochs=1, **SMALL)
    assert (result.step, result.steps, result.groups) == (5, 3, 5)
    names = [name for ids in backend.trained for name in ids]
    assert sorted(names) == sorted(str(n) for n in range(9))
    with pytest.raises(art.ConfigError, match="other scenarios"):
        await art.pipeline(model, range(8), ask, epochs=2, **SMALL)
    whole = await art.pipeline(model, range(9), ask, epochs=2, **SMALL)
    names = [name for ids in backend.trained for name in ids]
    assert Counter(names) == {str(n): 2 for n in range(9)}
    assert whole.groups == 9


async def test_ctrl_c_finishes_the_step_and_nothing_is_repeated(model, backend):
    async def before(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.05)

    backend.before_step = before
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        await art.pipeline(model, range(8), ask, eval_scenarios=["x"], eval_every=1, **SMALL)
    assert signal.getsignal(signal.SIGINT) is usual
    assert [row.step for row in train_rows(model)] == [1, 2]
    result = await art.pipeline(model, range(8), ask, eval_scenarios=["x"], eval_every=1, **SMALL)
    assert result.step == 4
    names = [name for ids in backend.trained for name in ids]
    assert sorted(names) == [str(n) for n in range(8)]
    evaluated = {row.step for row, _ in rows_of(model) if row.split == "val"}
    assert {2, 3, 4} <= evaluated


async def test_ctrl_c_ends_the_wait_for_a_batch(model):
    async def rollout(model, scenario):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        await art.pipeline(model, range(2), rollout, max_concurrent=1, **SMALL)
    assert train_rows(model) == []


def test_in_a_thread_it_leaves_signals_alone(tmp_path):
    async def main():
        backend = EchoBackend()
        made = art.TrainableModel(
            name="t", project="p", base_model="echo", base_path=tmp_path, sinks=[]
        )
        async with made:
            await made.register(backend)
            result = await art.pipeline(made, ["a", "b"], ask, **SMALL)
        await backend.close()
        return result.step

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, main()).result() == 1


async def test_failed_attempts_are_data_of_their_group(model):
    async def rollout(model, scenario):
        trajectory = await ask(model, scenario)
        if trajectory.reward % 3 == 0:
            raise ValueError("no answer")
        return trajectory

    result = await art.pipeline(
        model, range(6), rollout, max_exceptions=100, **(SMALL | {"attempts": 3})
    )
    rates = [row.metrics["reward/exception_rate"] for row in train_rows(model)]
    assert sum(rates) / len(rates) == pytest.approx(1 / 3)
    assert result.groups + result.set_aside == 6


@pytest.mark.parametrize("limit", [0, 1, 0.1])
async def test_too_many_failures_end_it(model, limit):
    async def rollout(model, scenario):
        trajectory = await ask(model, scenario)
        if int(trajectory.reward) % 2:
            raise ValueError("no answer")
        return trajectory

    with pytest.raises(art.RolloutError, match="more than max_exceptions allows.*no answer"):
        await art.pipeline(
            model, range(50), rollout, max_exceptions=limit, **(SMALL | {"min_batch_size": 2})
        )


async def test_if_all_attempts_fail_it_ends(model):
    def rollout(model, scenario):
        return None

    with pytest.raises(art.RolloutError, match=r"the last 4 rollouts failed.*not an awaitable"):
        await art.pipeline(model, range(50), rollout, **SMALL)


async def test_a_scenario_whose_attempts_fail_is_set_aside(model, backend):
    async def rollout(model, scenario):
        if scenario == 3:
            raise ValueError("broken")
        return await ask(model, scenario)

    result = await art.pipeline(model, range(5), rollout, **SMALL)
    assert (result.groups, result.set_aside) == (4, 1)


async def test_an_evaluation_that_fails_ends_it(model):
    async def broken(model, scenario):
        raise ValueError("no")

    with pytest.raises(art.RolloutError, match="all 1 attempts of m failed"):
        await art.pipeline(model, range(8), ask, eval_scenarios=["x"], eval_rollout=broken, **SMALL)


async def test_options_are_checked_before_any_rollout(model):
    async def never(model, scenario):
        raise AssertionError("it began")

    with pytest.raises(art.ConfigError, match=r"needs scenarios"):
        await art.pipeline(model, [], never)
    with pytest.raises(art.ConfigError, match=r"'min_batch'.*min_batch_size"):
        await art.pipeline(model, [1], never, min_batch=3)
    with pytest.raises(art.ConfigError, match="learning_rate must be"):
        await art.pipeline(model, [1], never, learning_rate=-1.0)
    with pytest.raises(art.ConfigError, match="max_batch_size is 2, and min_batch_size 3"):
        await art.pipeline(model, [1], never, min_batch_size=3, max_batch_size=2)
    with pytest.raises(art.ConfigError, match="max_exceptions must be a count or a share"):
        await art.pipeline(model, [1], never, max_exceptions=-1)


async def test_its_state_is_shown(model, monkeypatch, capsys):
    monkeypatch.setenv("ART_PROGRESS", "lines")
    monkeypatch.setenv("TQDM_MININTERVAL", "0.01")
    monkeypatch.setattr("art_core.pipelines.status.SHOWN_EVERY_S", 0.01)
    await art.pipeline(model, range(6), ask, teacher=None, **(SMALL | {"progress": True}), steps=3)
    shown = capsys.readouterr().err
    assert "pipeline: " in shown
    assert "running=" in shown


async def test_a_stop_that_a_sink_asks_for_ends_it_after_the_step(model, backend):
    async def before(step):
        if step == 2:
            model.run.info.stop.request("a test", "two steps are enough")

    backend.before_step = before
    with pytest.raises(art.StoppedError, match="a test stopped the training of 'm' after step 2"):
        await art.pipeline(model, range(8), ask, max_steps_off_policy=0, **SMALL)
    assert [row.step for row in train_rows(model)] == [1, 2]


@art.track_api_cost(
    source="judge",
    provider="openai",
    model_name="gpt-4.1",
    prompt_per_million=1000.0,
    completion_per_million=0.0,
)
def judged():
    """Pay one dollar."""
    return {"usage": {"prompt_tokens": 1000, "completion_tokens": 0}}


async def test_each_paid_call_is_in_the_log_once_also_of_attempts_that_no_step_trains(
    model, backend
):
    begun = []

    async def rollout(model, scenario):
        judged()
        begun.append(scenario)
        if scenario >= 6:
            await asyncio.Event().wait()
        if scenario == 5:
            raise ValueError("no")
        return await ask(model, scenario)

    async def after_each(group):
        return None if len(begun) % 3 == 0 else group

    given = {**SMALL, "max_concurrent": 4, "after_each": after_each}
    await art.pipeline(model, range(8), rollout, steps=2, seed=3, **given)
    assert any(scenario >= 6 for scenario in begun)
    await model.close()
    rows = list(art.open_run(model.run_dir).rows())
    assert rows[-1].metrics["costs/cum/train/judge"] == len(begun)
    assert sum(receipt.get("calls", 1) for row in rows for receipt in row.receipts
               if receipt["leaf"] == "costs/train/judge") == len(begun)  # fmt: skip
