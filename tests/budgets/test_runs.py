"""Runs with a budget: steps, evaluations, the end in order, and what comes after it."""

from __future__ import annotations

import pytest

import art_core as art
from art_core.budgets.account import BudgetAccount
from art_core.budgets.tally import read_tally
from art_core.testing.echo import EchoBackend


class DollarBackend(EchoBackend):
    """Each step costs a dollar, whatever the clock shows."""

    usd = 1.0

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        model.metrics_builder("train").add_cost("gpu", self.usd)
        return result

    async def train_sft(self, model, batches, **options):
        result = await super().train_sft(model, batches, **options)
        model.metrics_builder("train").add_cost("gpu", self.usd)
        return result


@art.track_api_cost(
    source="judge", provider="p", model_name="m", prompt_per_million=0, completion_per_million=1e6
)
async def judge(max_tokens):
    return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}


async def rollout(model, answer, calls=0):
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": answer}])
    done = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(done.choices[0])
    for _ in range(calls):
        await judge(max_tokens=1)
    trajectory.reward = float(answer == "yes")
    return trajectory


async def groups_of(model, calls=0):
    return await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(model, answer, calls) for answer in ("yes", "no"))],
        pbar_desc=None,
    )


@pytest.fixture
def model_of(tmp_path):
    def make(usd=None, name="m", **terms):
        return art.TrainableModel(
            name=name,
            project="p",
            base_model="echo-base",
            base_path=tmp_path,
            sinks=[],
            budget=None if usd is None else art.budget(usd=usd, **terms),
        )

    return make


def account_of(model):
    return model.metrics_builder().budget.account


async def trained(model, backend, steps=99, calls=0, **options):
    """Train until a step, or the end of the budget."""
    async with model:
        await model.register(backend)
        while await model.get_step() < steps:
            groups = await groups_of(model, calls)
            await model.train(groups, **options)


async def test_a_run_ends_before_the_step_that_would_exceed_its_budget_and_goes_on(model_of):
    backend = DollarBackend()
    with pytest.raises(art.BudgetError, match=r"step needs up to \$1, and \$0.5 of the budget"):
        await trained(model_of(3.5), backend)
    run = art.open_run(model_of().run_dir)
    assert run.status() == "out of budget"
    assert "step needs up to $1" in (run.state().reason or "")
    assert run.costs().total["all"] == 3.0
    assert await backend_steps(backend, model_of()) == [1, 2, 3]
    with pytest.raises(art.BudgetError):
        await trained(model_of(5), backend)
    assert run.costs().total["all"] == 5.0
    assert run.status() == "out of budget"


async def backend_steps(backend, model):
    model.keep_checkpoints = art.keep_all()
    return [checkpoint.step for checkpoint in await backend.checkpoints(model)]


async def test_a_run_within_its_budget_finishes(model_of):
    await trained(model_of(10), DollarBackend(), steps=2)
    run = art.open_run(model_of().run_dir)
    assert run.status() == "finished"
    tally = read_tally(run.path / "budget.jsonl")
    assert tally is not None
    assert (tally.spent, tally.reserved, tally.limit) == (2.0, 0.0, 10)


async def test_the_last_step_within_the_budget_has_a_checkpoint(model_of):
    backend = DollarBackend()
    with pytest.raises(art.BudgetError):
        await trained(model_of(3, per_step=1), backend, save_checkpoint=False)
    assert await backend_steps(backend, model_of()) == [3]


async def test_calls_of_a_step_are_counted_once_beside_its_training(model_of):
    model = model_of(100, per_step=10)
    await trained(model, DollarBackend(), steps=2, calls=2)
    rows = list(art.open_run(model.run_dir).rows())
    assert [row.metrics["costs/all"] for row in rows] == [5.0, 5.0]
    assert [row.covered for row in rows] == [4.0, 8.0]
    assert account_of(model).refresh().spent == pytest.approx(10.0)


async def test_calls_beyond_the_budget_end_the_run_in_the_middle_of_a_step(model_of):
    with pytest.raises(art.BudgetError, match="judge m"):
        await trained(model_of(5), DollarBackend(), calls=3)
    run = art.open_run(model_of().run_dir)
    assert run.status() == "out of budget"
    assert run.costs().total["all"] == pytest.approx(5.0)


async def test_a_step_that_costs_more_than_per_step_is_not_begun(model_of):
    class Dear(DollarBackend):
        usd = 3.0

    with pytest.raises(art.BudgetError, match=r"costs \$3 as a rule, more than per_step=\$2"):
        await trained(model_of(100, per_step=2), Dear())


async def test_training_ends_when_a_dollar_gains_too_little(model_of):
    with pytest.raises(art.BudgetError, match="less than min_reward_per_usd=0.01"):
        await trained(model_of(1000, min_reward_per_usd=0.01), DollarBackend())
    assert len(list(art.open_run(model_of().run_dir).rows())) == 10


async def test_the_budget_counts_what_a_run_spent_before_it_had_one(model_of):
    backend = DollarBackend()
    await trained(model_of(), backend, steps=2)
    assert not (model_of().run_dir / "budget.jsonl").exists()
    with pytest.raises(art.BudgetError, match=r"\$0 of the budget of \$2"):
        await trained(model_of(2), backend)


async def test_runs_that_share_a_file_share_the_dollars(model_of, tmp_path):
    file = tmp_path / "shared.jsonl"
    await trained(model_of(5, file=file, per_step=1), DollarBackend(), steps=3)
    with pytest.raises(art.BudgetError):
        await trained(model_of(5, file=file, per_step=1, name="other"), DollarBackend())
    other = art.open_run(model_of(name="other").run_dir)
    assert other.costs().total["all"] == 2.0
    assert (other.path / "budget.jsonl").resolve() == file
    # opened again, the link is there; a broken one is made again
    await trained(model_of(6, file=file, per_step=1, name="other"), DollarBackend(), steps=3)
    (other.path / "budget.jsonl").unlink()
    (other.path / "budget.jsonl").symlink_to(tmp_path / "gone")
    model = model_of(9, file=file, per_step=1, name="other")
    assert model.run
    assert account_of(model).spent == pytest.approx(6.0)
    model.run.close()


async def test_a_first_step_of_unknown_cost_reserves_all_that_is_left(model_of, tmp_path):
    file = tmp_path / "shared.jsonl"
    async with model_of(5, file=file) as first:
        await first.register(DollarBackend())
        await groups_of(first)
        assert account_of(first).left == 0.0
        with pytest.raises(art.BudgetError):
            BudgetAccount(art.budget(usd=5), file).reserve("call", 0.01)


async def test_nothing_begins_where_nothing_is_left_for_a_step_of_unknown_cost(model_of, tmp_path):
    file = tmp_path / "shared.jsonl"
    async with model_of(5, file=file, name="first") as first:
        await first.register(DollarBackend())
        await groups_of(first)
        async with model_of(5, file=file, name="second") as second:
            await second.register(DollarBackend())
            with pytest.raises(
                art.BudgetError, match=r"nothing is left .* \$0 spent, \$5 reserved"
            ):
                await second.train([art.TrajectoryGroup([art.Trajectory(reward=1.0)])])
            assert await second.get_step() == 0
    async with model_of(0, name="none") as model:
        await model.register(DollarBackend())
        with pytest.raises(art.BudgetError, match=r"nothing is left of the budget of \$0"):
            await groups_of(model)


async def test_an_evaluation_draws_from_its_own_reservation(model_of):
    async def with_calls(model, scenario):
        return await rollout(model, scenario["id"], calls=2)

    model, backend = model_of(20), DollarBackend()
    scenarios = [{"id": "yes"}, {"id": "no"}]
    async with model:
        await model.register(backend)
        await art.evaluate(model, scenarios, with_calls, progress=None)
        assert account_of(model).spent == pytest.approx(4.0)
        await art.evaluate(model, scenarios, with_calls, progress=None, step=0, split="test")
        assert account_of(model).spent == pytest.approx(8.0)
        await model.train(await groups_of(model))
        assert account_of(model).spent == pytest.approx(9.0)
        assert account_of(model).tally.reserved == 0.0


async def test_an_evaluation_ends_at_the_limit_and_goes_on_with_a_higher_one(model_of):
    made = []

    async def with_calls(model, scenario):
        made.append(scenario["id"])
        return await rollout(model, scenario["id"], calls=2)

    scenarios = [{"id": str(n)} for n in range(4)]

    async def evaluated(usd):
        async with model_of(usd) as model:
            await model.register(DollarBackend())
            await art.evaluate(model, scenarios, with_calls, progress=None, max_concurrent=1)

    with pytest.raises(art.BudgetError):
        await evaluated(5)
    run = art.open_run(model_of().run_dir)
    assert run.status() == "out of budget"
    assert made[:3] == ["0", "1", "2"]
    await evaluated(20)
    assert made[3:] in (["2", "3"], ["3", "2", "3"])
    tally = read_tally(run.path / "budget.jsonl")
    assert tally is not None
    # 8 calls of the attempts that count, and the one of the attempt that was ended
    assert tally.spent == pytest.approx(9.0)
    assert tally.reserved == 0.0


async def test_training_beside_an_evaluation_of_unknown_cost_shares_what_it_reserved(model_of):
    model = model_of(10)
    async with model:
        await model.register(DollarBackend())
        budget = model.metrics_builder().budget
        budget.begin("val")
        budget.begin("train")
        assert budget.opened("val") == budget.opened("train")
        await model.log(metrics={"x": 1.0}, split="val")
        assert budget.opened("train") is not None
        await model.train(await groups_of(model))
        assert account_of(model).tally.reserved == 0.0


async def test_supervised_steps_end_at_the_limit(model_of):
    backend, model = DollarBackend(), model_of(2, per_step=1)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    data = [art.Trajectory(messages_and_choices=turns, reward=0.0) for _ in range(4)]
    with pytest.raises(art.BudgetError):
        async with model:
            await model.register(backend)
            await model.train_sft(data, batch_size=1, checkpoint_every=50)
    assert await backend_steps(backend, model_of()) == [2]


async def test_a_pipeline_ends_in_order_at_the_limit(model_of):
    async def plain(model, scenario):
        return await rollout(model, scenario)

    backend = DollarBackend()
    with pytest.raises(art.BudgetError):
        async with model_of(3, per_step=1) as model:
            await model.register(backend)
            await art.pipeline(
                model, ["yes", "no"], plain, attempts=2, min_batch_size=1, epochs=50,
                progress=False, zero_variance="drop",
            )  # fmt: skip
    run = art.open_run(model_of().run_dir)
    assert run.status() == "out of budget"
    assert run.costs().total["all"] == pytest.approx(3.0)
    assert (await backend_steps(backend, model_of()))[-1] == 3


async def test_a_call_in_a_pipeline_is_counted_once_when_it_is_made_and_when_it_is_logged(model_of):
    async def judged(model, scenario):
        await judge(max_tokens=1)
        return await rollout(model, scenario)

    model = model_of(100)
    async with model:
        await model.register(DollarBackend())
        await art.pipeline(
            model, ["yes", "no"], judged, attempts=2, min_batch_size=1, progress=False,
            zero_variance="drop",
        )  # fmt: skip
    costs = art.open_run(model.run_dir).costs().total
    assert costs["all"] > costs["gpu"] > 0
    assert account_of(model).refresh().spent == pytest.approx(costs["all"])


async def test_an_object_that_takes_a_run_over_goes_on_with_its_account(model_of):
    backend = DollarBackend()
    first = model_of(100, per_step=10)
    await first.register(backend)
    groups = await groups_of(first, calls=1)
    second = model_of(100, per_step=10)
    await second.register(backend)
    await second.train(groups)
    assert account_of(second).spent == pytest.approx(3.0)
    assert account_of(second).refresh().reserved == 0.0
    await second.close()


async def test_a_run_whose_budget_cannot_be_read_is_not_opened(model_of):
    model = model_of(1)
    model.run_dir.mkdir(parents=True)
    (model.run_dir / "budget.jsonl").write_text("odd\n")
    for _ in range(2):  # the log is not left locked
        with pytest.raises(art.BudgetError, match="can't be read"):
            assert model.run


async def test_a_judge_after_each_group_ends_the_gathering(model_of):
    async def after_each(group):
        for _ in range(3):
            await judge(max_tokens=1)
        return group

    async with model_of(2) as model:
        await model.register(DollarBackend())
        groups = [art.TrajectoryGroup(rollout(model, answer) for answer in ("yes", "no"))]
        with pytest.raises(art.BudgetError):
            await art.gather_trajectory_groups(groups, pbar_desc=None, after_each=after_each)


async def test_a_run_whose_key_has_nothing_left_serves_no_more(model_of):
    model = model_of(1)
    async with model:
        await model.register(DollarBackend())
        budget = model.metrics_builder().budget
        budget.check_left()
        budget.begin("train")
        budget.check_left()  # the step under way has it
        await model.train(await groups_of(model))
        with pytest.raises(art.BudgetError, match=r"nothing is left of the budget of \$1: \$1"):
            budget.check_left()
