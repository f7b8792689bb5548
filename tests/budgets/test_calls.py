"""Paid calls under a budget: what is reserved before them, and what becomes of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from judge_server import USAGE, in_turn, judging

import art_core as art

DOLLAR = {"prompt_per_million": 0.0, "completion_per_million": 1e6}  # a dollar for each token


def paid(calls, tokens=1, *, source="judge", fails=None, **rates):
    """Return a tracked function whose calls cost a dollar for each token."""

    @art.track_api_cost(source=source, provider="p", model_name="m", **(rates or DOLLAR))
    async def ask(max_tokens=1):
        calls.append(max_tokens)
        if fails is not None:
            raise fails
        return {"usage": {"prompt_tokens": 1, "completion_tokens": tokens}}

    return ask


async def test_calls_end_before_the_one_that_would_exceed_the_budget():
    calls = []
    ask = paid(calls)
    with art.budget(usd=3).limiting() as account:
        for _ in range(3):
            await ask(max_tokens=1)
        with pytest.raises(art.BudgetError, match=r"judge m needs up to \$1, and \$0"):
            await ask(max_tokens=1)
    assert len(calls) == 3
    assert account.spent == 3.0


async def test_calls_at_the_same_time_do_not_spend_the_last_dollar_twice():
    calls = []
    ask = paid(calls)
    with art.budget(usd=3).limiting():
        results = await asyncio.gather(
            *(ask(max_tokens=1) for _ in range(8)), return_exceptions=True
        )
    assert len(calls) == 3
    assert sum(isinstance(each, art.BudgetError) for each in results) == 5


async def test_a_call_that_costs_less_than_reserved_leaves_the_rest():
    calls = []
    ask = paid(calls)
    with art.budget(usd=5).limiting() as account:
        await ask(max_tokens=5)
        assert account.left == 4.0
        await ask(max_tokens=4)
    assert account.spent == 2.0


async def test_processes_and_runs_share_a_file(tmp_path):
    calls = []
    ask = paid(calls)
    terms = art.budget(usd=2, file=tmp_path / "shared.jsonl")
    for _ in range(2):
        with terms.limiting():
            await ask(max_tokens=1)
    with terms.limiting(), pytest.raises(art.BudgetError):
        await ask(max_tokens=1)


@pytest.mark.parametrize(
    ("error", "spent"),
    [(ValueError("busy"), 0.0), (TimeoutError(), 1.0), (asyncio.CancelledError(), 1.0)],
)
async def test_a_call_that_fails_is_free_unless_it_may_go_on(error, spent):
    ask = paid([], fails=error)
    with art.budget(usd=3).limiting() as account, pytest.raises(type(error)):
        await ask(max_tokens=1)
    assert (account.spent, account.tally.reserved) == (spent, 0.0)


async def test_an_answer_whose_cost_cannot_be_read_counts_as_reserved():
    @art.track_api_cost(source="judge", provider="p", model_name="m", **DOLLAR)
    async def ask(max_tokens):
        return {"no": "usage"}

    with art.budget(usd=3).limiting() as account:
        await ask(max_tokens=2)
    assert account.spent == 2.0


async def test_an_answer_with_odd_counts_counts_as_reserved():
    @art.track_api_cost(source="judge", provider="p", model_name="m", **DOLLAR)
    async def ask(max_tokens):
        return {"usage": {"prompt_tokens": -1, "completion_tokens": 1}}

    with art.budget(usd=3).limiting() as account:
        await ask(max_tokens=2)
    assert account.spent == 2.0


async def test_a_tracked_call_inside_another_is_paid_once():
    inner = paid([])

    @art.track_api_cost(source="outer", provider="p", model_name="m", **DOLLAR)
    async def outer(max_tokens):
        return await inner(max_tokens=max_tokens)

    with art.budget(usd=10).limiting() as account:
        await outer(max_tokens=3)
    assert (account.spent, account.tally.reserved) == (1.0, 0.0)


def test_calls_in_threads_and_of_generators_are_limited():
    @art.track_api_cost(source="judge", provider="p", model_name="m", **DOLLAR)
    def stream(max_tokens):
        yield {"choices": []}
        yield {"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "choices": []}

    with art.budget(usd=1).limiting() as account, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: list(stream(max_tokens=1))).result()
        assert account.spent == 1.0
        with pytest.raises(art.BudgetError):
            pool.submit(lambda: list(stream(max_tokens=1))).result()


async def test_an_unknown_price_is_refused_under_a_budget():
    calls = []

    @art.track_api_cost(source="judge", provider="nobody", model_name="m")
    async def ask():
        calls.append(1)

    with art.budget(usd=1).limiting(), pytest.raises(art.PricingError):
        await ask()
    assert not calls


async def test_a_model_reserves_an_unknown_price_at_the_stated_bound(tmp_path):
    @art.track_api_cost(source="judge", provider="nobody", model_name="m")
    async def ask():
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    terms = art.budget(usd=1, unknown_price_usd=0.4)
    async with art.Model(
        name="m", project="p", base_path=tmp_path, sinks=[], budget=terms
    ) as model:
        with model.metrics_builder("train").activate_context():
            await ask()
            await ask()
            with pytest.raises(art.BudgetError):
                await ask()
        account = model.metrics_builder().budget.account
        assert account.spent == pytest.approx(0.8)
        await model.log(metrics={"x": 1.0})
        assert account.spent == pytest.approx(0.8)  # the log knows no price: it stays


async def test_a_judge_stops_before_its_budget_is_exceeded(tmp_path):
    prices = {"prompt_per_million": 0.0, "completion_per_million": 1e4}  # a dollar an answer
    assert USAGE["completion_tokens"] == 100
    with judging(lambda _: '{"score": 0.5}') as server:
        judge = art.Judge(model="m", base_url=server.url, options={"max_tokens": 100})
        async with art.Model(
            name="m", project="p", base_path=tmp_path, sinks=[], budget=art.budget(usd=2)
        ) as model:
            builder = model.metrics_builder("train")
            builder.register_model_pricing("m", **prices)
            with builder.activate_context():
                for _ in range(2):
                    await judge.ask([{"role": "user", "content": "?"}], lambda value: value)
                with pytest.raises(art.BudgetError):
                    await judge.ask([{"role": "user", "content": "?"}], lambda value: value)
            await model.log(metrics={"x": 1.0})
            account = builder.budget.account
            assert account.spent == pytest.approx(2.0)
            assert model.run.history.last.covered == pytest.approx(2.0)
    assert len(server.requests) == 2


async def test_a_judge_of_unknown_price_is_refused_and_one_that_fails_is_free():
    with judging(lambda _: "1") as server:
        judge = art.Judge(model="m", base_url=server.url)
        with art.budget(usd=2).limiting(), pytest.raises(art.BudgetError, match="unknown_price"):
            await judge.ask([{"role": "user", "content": "?"}], lambda value: value)
        assert not server.requests
    with judging(in_turn((400, {"error": {"message": "no"}}))) as server:
        judge = art.Judge(model="m", base_url=server.url, max_retries=0)
        terms = art.budget(usd=2, unknown_price_usd=1)
        with terms.limiting() as account, pytest.raises(art.RewardError):
            await judge.ask([{"role": "user", "content": "?"}], lambda value: value)
    assert (account.spent, account.tally.reserved) == (0.0, 0.0)


def prompted(server, tmp_path, **options):
    model = art.Model(
        name="prompted",
        project="p",
        base_path=tmp_path,
        sinks=[],
        inference_model_name="m",
        inference_base_url=server.url,
        inference_api_key="k",
        **options,
    )
    prices = {"prompt_per_million": 0.0, "completion_per_million": 1e4}
    model.metrics_builder().register_model_pricing("m", **prices)
    return model


async def test_a_prompted_model_is_asked_within_its_budget(tmp_path):
    ask = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 100}
    with judging(lambda _: "yes") as server:
        async with prompted(server, tmp_path, budget=art.budget(usd=2)) as model:
            for _ in range(2):
                await model.openai_client().chat.completions.create(**ask)
            with pytest.raises(art.BudgetError, match="model m needs"):
                await model.openai_client().chat.completions.create(**ask)
            account = model.metrics_builder().budget.account
            assert account.spent == pytest.approx(2.0)
    assert len(server.requests) == 2
    assert art.open_run(model.run_dir).costs().total["all"] == pytest.approx(2.0)


async def test_a_request_that_fails_is_free_and_one_with_bad_usage_counts_as_reserved(tmp_path):
    ask = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 100}
    refused = (400, {"error": {"message": "no"}})
    with judging(in_turn(refused, "yes")) as server:
        async with prompted(server, tmp_path, budget=art.budget(usd=2)) as model:
            client = model.openai_client().with_options(max_retries=0)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**ask)
            account = model.metrics_builder().budget.account
            assert (account.spent, account.tally.reserved) == (0.0, 0.0)
            await client.chat.completions.create(**ask)
            assert account.spent == pytest.approx(1.0)


async def test_a_tracked_call_of_a_prompted_model_is_paid_once(tmp_path):
    ask = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 100}
    with judging(lambda _: "yes") as server:
        async with prompted(server, tmp_path, budget=art.budget(usd=9)) as model:
            prices = {"prompt_per_million": 0.0, "completion_per_million": 1e4}

            @art.track_api_cost(source="judge", provider="p", model_name="m", **prices)
            async def tracked(max_tokens):
                return await model.openai_client().chat.completions.create(**ask)

            with model.metrics_builder("train").activate_context():
                await tracked(max_tokens=100)
            account = model.metrics_builder().budget.account
            assert (account.spent, account.tally.reserved) == (pytest.approx(1.0), 0.0)


async def test_an_agent_that_brings_its_client_gets_402(tmp_path):
    ask = {"model": "m", "messages": [{"role": "user", "content": "?"}], "max_tokens": 100}
    with judging(lambda _: "yes") as server:
        async with prompted(server, tmp_path, budget=art.budget(usd=1)) as model:
            with model.recording(art.Trajectory()) as endpoint:
                client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
                async with client:
                    await client.chat.completions.create(**ask)
                    with pytest.raises(openai.APIStatusError, match="of the budget of") as raised:
                        await client.chat.completions.create(**ask)
            assert raised.value.status_code == 402


async def one_attempt(ask, model, calls=3):
    async def rollout():
        for _ in range(calls):
            await ask(max_tokens=1)
        return art.Trajectory(reward=1.0, messages_and_choices=[{"role": "user", "content": "?"}])

    [group] = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([rollout(), rollout()])], pbar_desc=None, max_exceptions=9
    )
    return group


async def test_an_attempt_ends_as_a_failure_at_its_own_limit(tmp_path):
    ask = paid([])
    terms = art.budget(usd=100, per_attempt=2)
    async with art.Model(
        name="m", project="p", base_path=tmp_path, sinks=[], budget=terms
    ) as model:
        with pytest.raises(art.RolloutError) as raised:
            await one_attempt(ask, model)
        [group] = raised.value.groups
        assert [failure.reason for failure in group.failures] == ["budget", "budget"]
        assert "more than per_attempt=$2" in group.failures[0].message
        group = await one_attempt(ask, model, calls=2)
        assert group.rewards == [1.0, 1.0]


async def test_an_attempt_whose_call_cost_more_than_reserved_is_a_failure(tmp_path):
    ask = paid([], tokens=5)
    terms = art.budget(usd=100, per_attempt=2)
    async with art.Model(
        name="m", project="p", base_path=tmp_path, sinks=[], budget=terms
    ) as model:
        with pytest.raises(art.RolloutError) as raised:
            await one_attempt(ask, model, calls=1)
        [group] = raised.value.groups
        assert "come to $5" in group.failures[0].message
        assert model.metrics_builder().budget.account.spent == 10.0


async def test_the_limit_of_a_run_ends_its_gathering(tmp_path):
    ask = paid([])
    async with art.Model(
        name="m", project="p", base_path=tmp_path, sinks=[], budget=art.budget(usd=4)
    ) as model:
        with pytest.raises(art.BudgetError):
            await one_attempt(ask, model)


async def test_a_limit_inside_a_rollout_is_that_rollout_s_own():
    ask = paid([])

    async def rollout():
        with art.budget(usd=1).limiting():
            await ask(max_tokens=1)
            await ask(max_tokens=1)

    with pytest.raises(art.RolloutError) as raised:
        await art.gather_trajectories([rollout()], pbar_desc=None)
    [group] = raised.value.groups
    assert group.failures[0].reason == "budget"


async def test_of_several_models_with_budgets_none_pays_before_it_is_known(tmp_path):
    ask = paid([])
    options = {"project": "p", "base_path": tmp_path, "sinks": [], "budget": art.budget(usd=4)}
    async with art.Model(name="a", **options) as a, art.Model(name="b", **options) as b:
        group = await one_attempt(ask, a, calls=1)
        await a.log([group])
        spent = [m.metrics_builder().budget.account.spent for m in (a, b)]
        assert spent == [2.0, 0.0]  # the row of a has them


def test_the_error_of_a_budget_has_its_status(tmp_path):
    from art_core.run.exits import status_of

    error = art.BudgetError("spent")
    assert status_of(error) == "out of budget"
    around = art.RolloutError("all failed")
    around.__cause__ = error
    assert status_of(around) == "out of budget"
