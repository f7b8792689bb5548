"""Evaluations: rows, costs, and going on after an interruption."""

import asyncio
import json

import attrs
import openai
import pytest
from judge_server import USAGE, judging

import art_core as art
from art_core.data.dataset import scenario_id
from art_core.evaluation.attempts import Attempt, AttemptFile, by_id
from art_core.evaluation.evaluate import evaluate
from art_core.testing.echo import EchoBackend

PRICES = {"prompt_per_million": 2.0, "completion_per_million": 8.0}
CALL_USD = (USAGE["prompt_tokens"] * 2 + USAGE["completion_tokens"] * 8) / 1e6
SCENARIOS = [{"id": f"s{i}", "answer": answer} for i, answer in enumerate(["yes", "no", "yes"])]


def model_at(path, **fields):
    return art.Model(name="m", project="p", base_path=path, sinks=[], **fields)


async def rollout(model, scenario):
    reward = float(scenario["answer"] == "yes")
    question = {"role": "user", "content": scenario["answer"]}
    return art.Trajectory(messages_and_choices=[question], reward=reward)


def never(seq):
    return False


def attempts_of(model, split="val", step=0):
    path = model.run_dir / "evaluations" / split / f"{step:04d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_row_of_a_model(tmp_path):
    model = model_at(tmp_path)
    (found,) = await evaluate(model, SCENARIOS, rollout, repeats=2, progress=None)
    assert (found.model, found.step, found.failures, found.unpriced) == ("m", 0, 0, 0)
    assert found.rewards == {"s0": [1.0, 1.0], "s1": [0.0, 0.0], "s2": [1.0, 1.0]}
    assert found.pass_at == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}
    metrics = found.row.metrics
    assert metrics["val/reward"] == pytest.approx(2 / 3)
    assert metrics["val/reward_std_err"] == pytest.approx(found.reward.std_err)
    assert metrics["val/pass_at_1"] == pytest.approx(2 / 3)
    assert metrics["val/usd_per_attempt"] == 0
    assert metrics["val/seconds_per_attempt"] == found.seconds > 0
    assert metrics["val/data/step_num_trajectories"] == 6
    assert attempts_of(model)[-1] == {"row": 1}
    await model.close()


async def test_a_second_evaluation_of_a_step_runs_anew(tmp_path):
    model = model_at(tmp_path)
    for _ in range(2):
        (found,) = await evaluate(model, SCENARIOS, rollout, progress="evaluate")
    assert found.row.seq == 2
    assert sum("attempt" in line for line in attempts_of(model)) == 6
    await model.close()


async def test_an_interrupted_evaluation_goes_on_and_pays_nothing_twice(tmp_path):
    model = model_at(tmp_path)
    builder = model.metrics_builder()
    builder.register_model_pricing("j", **PRICES)
    begun = []

    @art.track_api_cost(source="judge", provider="x", model_name="j")
    async def judge():
        return {"usage": USAGE}

    async def paid(model, scenario):
        begun.append(scenario["id"])
        await judge()
        if len(begun) == 3:
            raise asyncio.CancelledError
        return await rollout(model, scenario)

    async def interrupted():
        task = asyncio.ensure_future(
            evaluate(model, SCENARIOS, paid, repeats=2, max_concurrent=1, progress=None)
        )
        while len(begun) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await interrupted()
    assert sum("attempt" in line for line in attempts_of(model)) == 2
    (found,) = await evaluate(model, SCENARIOS, paid, repeats=2, max_concurrent=1, progress=None)
    assert found.reward.count == 6
    assert begun == ["s0", "s0", "s1", "s1", "s1", "s2", "s2"]
    assert found.usd == pytest.approx(CALL_USD)
    # the call of the attempt that was cancelled was paid too, and is in the row
    assert found.row.metrics["costs/eval/judge"] == pytest.approx(7 * CALL_USD)
    await model.close()


async def test_another_plan_begins_anew(tmp_path):
    model = model_at(tmp_path)
    plan = {"scenarios": ["s0"], "repeats": 1, "step": 0}
    path = model.run_dir / "evaluations" / "val" / "0000.jsonl"
    old = AttemptFile.open(path, plan, never)
    old.add(Attempt(scenario="s0", repeat=0, result=art.Trajectory(reward=9.0)))
    assert AttemptFile.open(path, plan, never).attempts[0].result.reward == 9.0
    (found,) = await evaluate(model, SCENARIOS, rollout, progress=None)
    assert found.reward.mean == pytest.approx(2 / 3)
    await model.close()


async def test_costs_that_wait_for_a_row_are_not_booked_again(tmp_path, monkeypatch):
    model = model_at(tmp_path)

    @art.track_api_cost(source="judge", provider="x", model_name="j", **PRICES)
    async def judge():
        return {"usage": USAGE}

    async def paid(model, scenario):
        await judge()
        return await rollout(model, scenario)

    def full(fd, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("art_core.log.history.os.write", full)
        with pytest.raises(art.HistoryError):
            await evaluate(model, SCENARIOS, paid, progress=None)
    (found,) = await evaluate(model, SCENARIOS, paid, progress=None)
    assert found.row.seq == 1
    assert found.row.metrics["costs/cum/all"] == pytest.approx(3 * CALL_USD)
    assert found.usd == pytest.approx(CALL_USD)
    await model.close()


async def test_failed_attempts_run_again_and_their_costs_stay(tmp_path):
    model = model_at(tmp_path)
    path = model.run_dir / "evaluations" / "val" / "0000.jsonl"
    file = AttemptFile.open(path, {"scenarios": ["s0", "s1", "s2"], "repeats": 1, "step": 0}, never)
    lost = art.RolloutFailure(reason="raised", type="OSError", message="down")
    file.add(Attempt(scenario="s0", repeat=0, result=lost, usd={"judge": 0.5}, unpriced=1))
    (found,) = await evaluate(model, SCENARIOS, rollout, progress=None)
    assert found.failures == 0
    assert found.row.metrics["costs/eval/judge"] == 0.5
    assert found.row.metrics["data/step_unpriced_calls"] == 1
    assert (found.usd, found.unpriced) == (pytest.approx(0.5 / 3), 1)
    await model.close()


async def test_failures_are_part_of_the_row(tmp_path):
    model = model_at(tmp_path)

    async def sometimes(model, scenario):
        if scenario["id"] == "s1":
            raise ConnectionError("down")
        return await rollout(model, scenario)

    (found,) = await evaluate(model, SCENARIOS, sometimes, progress=None, success=0.5)
    assert found.failures == 1
    assert found.row.metrics["val/exception_rate"] == pytest.approx(1 / 3)
    assert found.row.metrics["val/reward"] == 1
    assert found.pass_at[1] == pytest.approx(2 / 3)
    await model.close()


async def test_a_model_that_no_attempt_reaches_is_an_error_and_no_row(tmp_path):
    model = model_at(tmp_path)

    def down(model, scenario):
        raise ConnectionError("no route")

    with pytest.raises(art.RolloutError, match="all 3 attempts of m failed; the first: Connection"):
        await evaluate(model, SCENARIOS, down, progress=None)
    assert model.run.history.last is None
    (found,) = await evaluate(model, SCENARIOS, rollout, progress=None)
    assert found.reward.count == 3
    await model.close()


async def test_a_rollout_that_is_late_is_a_failure(tmp_path):
    model = model_at(tmp_path)

    async def slow(model, scenario):
        await asyncio.sleep(60 if scenario["id"] == "s0" else 0)
        return await rollout(model, scenario)

    (found,) = await evaluate(model, SCENARIOS, slow, timeout=0.1, progress=None)
    assert found.groups[0].failures[0].reason == "timeout"
    await model.close()


async def test_one_scenario_has_no_standard_error(tmp_path):
    model = model_at(tmp_path)
    (found,) = await evaluate(
        model, ["only"], lambda m, s: rollout(m, {"answer": s}), progress=None
    )
    assert "val/reward_std_err" not in found.row.metrics
    await model.close()


async def test_a_prompted_baseline_is_priced(tmp_path):
    with judging(lambda _: "yes") as server:
        model = model_at(tmp_path, inference_base_url=server.url, inference_model_name="paid")
        model.metrics_builder().register_model_pricing("paid", **PRICES)

        async def asks(model, scenario):
            question = {"role": "user", "content": "?"}
            completion = await model.openai_client().chat.completions.create(
                model=model.get_inference_name(), messages=[question]
            )
            right = completion.choices[0].message.content == scenario["answer"]
            return art.Trajectory(
                messages_and_choices=[question, completion.choices[0]], reward=float(right)
            )

        (found,) = await evaluate(model, SCENARIOS, asks, progress=None)
    assert found.usd == pytest.approx(CALL_USD)
    assert found.row.metrics["costs/eval/model"] == pytest.approx(3 * CALL_USD)
    await model.close()


async def test_calls_without_a_price_are_counted(tmp_path):
    model = model_at(tmp_path)

    @art.track_api_cost(source="judge", provider="x", model_name="j", **PRICES)
    async def judge():
        return {"usage": {}}

    async def unpriced(model, scenario):
        await judge()
        return await rollout(model, scenario)

    (found,) = await evaluate(model, SCENARIOS, unpriced, progress=None)
    assert (found.usd, found.unpriced) == (0, 3)
    assert found.row.metrics["data/step_unpriced_calls"] == 3
    await model.close()


async def test_an_older_step_is_asked_for_by_name(tmp_path):
    backend = EchoBackend()
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    asked = []

    async def names(model, scenario):
        asked.append((model.get_inference_name(), model.get_inference_name(0), model.name))
        return await rollout(model, scenario)

    groups = [art.TrajectoryGroup([await rollout(model, s) for s in SCENARIOS]) for _ in range(1)]
    await model.train(groups)
    (found,) = await evaluate(model, SCENARIOS[:1], names, step=0, split="test", progress=None)
    assert (found.step, found.row.step, found.row.split) == (0, 0, "test")
    newest = model.get_inference_name()
    assert asked == [(f"{newest}@0", f"{newest}@0", "m")]
    (found,) = await evaluate(model, SCENARIOS[:1], names, progress=None)
    assert (found.step, asked[1][0]) == (1, newest)
    await model.close()
    await backend.close()


async def test_several_models_share_the_slots(tmp_path):
    models = [model_at(tmp_path / name) for name in "ab"]
    running = most = 0

    async def counts(model, scenario):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return await rollout(model, scenario)

    found = await evaluate(models, SCENARIOS, counts, max_concurrent=2, progress=None)
    assert [e.row.seq for e in found] == [1, 1]
    assert most == 2
    for model in models:
        await model.close()


async def test_bad_plans_are_refused(tmp_path):
    model = model_at(tmp_path)
    with pytest.raises(art.ConfigError, match="scenario 's0' is there twice"):
        await evaluate(model, [*SCENARIOS, SCENARIOS[0]], rollout)
    with pytest.raises(art.ConfigError, match="at least one scenario"):
        await evaluate(model, [], rollout)
    for wrong in ({"repeats": 0}, {"max_concurrent": 0}, {"repeats": True}, {"repeats": 1.5}):
        with pytest.raises(art.ConfigError, match="must be a whole number of at least 1"):
            await evaluate(model, SCENARIOS, rollout, **wrong)
    with pytest.raises(art.ConfigError, match="split name '../x' can't be a directory's name"):
        await evaluate(model, SCENARIOS, rollout, split="../x")
    with pytest.raises(art.ConfigError, match="a step must be a whole number"):
        await evaluate(model, SCENARIOS, rollout, step=-1)
    assert not (tmp_path / "p").exists()
    with pytest.raises(art.ConfigError, match="returned int, not an awaitable"):
        await evaluate(model, SCENARIOS, lambda m, s: 3, progress=None)
    await model.close()


def test_ids_of_scenarios():
    @attrs.frozen
    class Scenario:
        text: str

    assert scenario_id({"id": 3}) == "3"
    assert scenario_id({"scenario_id": "x", "n": 1}) == "x"
    assert scenario_id("text") == "text"
    assert scenario_id({"b": 1, "a": 2}) == scenario_id({"a": 2, "b": 1})
    assert scenario_id(Scenario("x")) == scenario_id({"text": "x"}) != scenario_id({"text": "y"})
    assert list(by_id(["a", "b"])) == ["a", "b"]
    with pytest.raises(art.ConfigError, match="a scenario needs an id"):
        scenario_id(object())


def test_a_torn_line_is_an_attempt_that_runs_again(tmp_path):
    path, plan = tmp_path / "x.jsonl", {"step": 0}
    file = AttemptFile.open(path, plan, never)
    for repeat in range(2):
        file.add(Attempt(scenario="s", repeat=repeat, result=art.Trajectory()))
    path.write_bytes(path.read_bytes()[:-9])
    torn = AttemptFile.open(path, plan, never)
    assert [a.repeat for a in torn.attempts] == [0]
    torn.add(Attempt(scenario="s", repeat=1, result=art.Trajectory(reward=2.0)))
    again = AttemptFile.open(path, plan, never).attempts
    assert [(a.repeat, a.result.reward) for a in again] == [(0, 0.0), (1, 2.0)]


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch):
    path, plan = tmp_path / "x.jsonl", {"step": 0}
    file = AttemptFile.open(path, plan, never)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("art_core.evaluation.attempts.os.fsync", full)
    with pytest.raises(art.HistoryError, match="cannot keep an attempt"):
        file.add(Attempt(scenario="s", repeat=0, result=art.Trajectory()))
    assert path.read_bytes() == before


async def test_an_agent_that_is_recorded_is_served_the_weights_of_the_step(tmp_path):
    async def recorded(model, scenario):
        trajectory = art.Trajectory()
        with model.recording(trajectory) as endpoint:
            client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
            async with client:
                messages = [{"role": "user", "content": "?"}]
                await client.chat.completions.create(model=endpoint.model_name, messages=messages)
        return trajectory

    backend = EchoBackend()
    model = art.TrainableModel(
        name="m", project="p", base_model="b", base_path=tmp_path, sinks=[], backend=backend
    )
    async with model:
        await model.train([])
        (found,) = await evaluate(model, ["s"], recorded, step=0, progress=None)
        assert found.groups[0].trajectories[0].initial_policy_version == 0
    await backend.close()
