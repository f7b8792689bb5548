"""Whose run has the cost of a call: exactly one, whatever becomes of the rollout."""

import asyncio
import copy
import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.base.errors import PricingError, RolloutError
from art_core.costs import pending
from art_core.data.account import UNOWNED, Account, unsettled

RESPONSE = {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}}
DOLLAR = {"prompt_per_million": 1.0, "completion_per_million": 1.0}
pytestmark = pytest.mark.usefixtures("no_open_models")


@art.track_api_cost(source="judge", provider="acme", model_name="j", **DOLLAR)
def judge():
    return RESPONSE


@art.track_api_cost(source="judge", provider="acme", model_name="registered")
def judge_at_a_registered_price():
    return RESPONSE


@pytest.fixture
async def opened(tmp_path):
    models = []

    def make(name):
        model = art.Model(
            name=name, project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins()
        )
        models.append(model)
        return model

    yield make
    for model in models:
        await model.close()


async def rollout(reward=0.0, call=judge):
    call()
    return art.Trajectory(reward=reward)


async def fails(call=judge):
    call()
    raise ValueError("after it was paid")


def gather(*groups, **options):
    return art.gather_trajectory_groups(groups, **{"pbar_desc": None} | options)


def costs(row):
    return {k: v for k, v in row.metrics.items() if k.startswith("costs/") and "/cum/" not in k}


def eval_costs(usd):
    return dict.fromkeys(("costs/eval/judge", "costs/eval", "costs/all"), usd)


async def test_a_game_of_two_players_is_paid_once(opened):
    async def game():
        judge()
        return {"white": art.Trajectory(reward=1.0), "black": art.Trajectory(reward=0.0)}

    one, two = opened("one"), opened("two")
    white, black = await gather(art.TrajectoryGroup([game(), game(), fails()]))
    row = await one.log([white, black])
    assert costs(row) == eval_costs(3.0)
    assert row.metrics["val/exception_rate"] == pytest.approx(1 / 3)
    white, black = await gather(art.TrajectoryGroup([game()]))
    assert costs(await one.log([white])) == eval_costs(1.0)
    assert costs(await two.log([black])) == {}


async def test_a_gathered_group_is_paid_by_the_model_that_logs_it(opened):
    one, two = opened("one"), opened("two")
    groups = await gather(
        art.TrajectoryGroup([rollout(), fails()]), art.TrajectoryGroup(rollout() for _ in range(3))
    )
    assert costs(await one.log(groups[:1])) == eval_costs(2.0)
    assert costs(await two.log(groups[1:], split="train"))["costs/train/judge"] == 3.0
    assert costs(await one.log(groups[:1])) == {}  # logged once more
    assert costs(await two.log(groups[:1], split="train")) == {}  # by another model too


async def test_with_one_open_model_the_context_is_that_of_the_split(opened):
    model = opened("one")
    groups = await gather(art.TrajectoryGroup([rollout()]))
    assert costs(await model.log(metrics={"x": 1.0}, split="train")) == {}
    assert costs(await model.log(groups, split="test")) == eval_costs(1.0)


async def test_an_active_builder_pays_before_the_group_does(opened):
    one, two = opened("one"), opened("two")
    with one.metrics_builder("train").activate_context():
        groups = await gather(art.TrajectoryGroup([rollout()]))
    assert costs(await two.log(groups)) == {}
    assert costs(await one.log(split="train"))["costs/train/judge"] == 1.0


async def test_a_builder_without_a_context_gets_that_of_the_split(opened):
    model, _ = opened("one"), opened("two")
    with model.metrics_builder().activate_context():
        groups = await gather(art.TrajectoryGroup([rollout()]))
        judge()
    assert costs(await model.log(groups)) == {
        "costs/eval/judge": 1.0,
        "costs/eval": 1.0,
        "costs/train/judge": 1.0,
        "costs/train": 1.0,
        "costs/all": 2.0,
    }


async def test_threads_of_a_rollout_charge_its_group(opened):
    one, two = opened("one"), opened("two")

    async def threaded():
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=judge)
        thread.start()
        with ThreadPoolExecutor(1) as pool:
            await loop.run_in_executor(pool, judge)
        await loop.run_in_executor(None, judge)
        await asyncio.to_thread(judge)
        thread.join()
        return art.Trajectory()

    groups = await gather(*[art.TrajectoryGroup([threaded()]) for _ in range(2)])
    assert costs(await two.log(groups[:1])) == eval_costs(4.0)
    assert costs(await one.log(groups[1:])) == eval_costs(4.0)


@pytest.mark.parametrize("inside", ["builder", "gathering", "both", "two builders"])
async def test_a_thread_that_began_before_charges_the_only_active_builder_or_gathering(
    opened, caplog, inside
):
    one, two = opened("one"), opened("two")
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        works = threading.Semaphore(0)

        def work():
            works.acquire()
            judge()

        working = pool.submit(work)
        if inside == "gathering":

            async def waits():
                works.release()
                await asyncio.wrap_future(working)
                return art.Trajectory()

            groups = await gather(art.TrajectoryGroup([waits()]))
            row = await one.log(groups)
        else:
            stack.enter_context(one.metrics_builder("eval").activate_context())
            if inside == "both":
                stack.enter_context(one.metrics_builder("eval").activate_context())
            if inside == "two builders":
                stack.enter_context(two.metrics_builder("eval").activate_context())
            works.release()
            working.result()
            row = await one.log()
    if inside == "two builders":
        assert costs(row) == {}
        assert UNOWNED.waiting
        assert "several models are open" in caplog.text
    else:
        assert costs(row) == eval_costs(1.0)
        assert ("began before the active" in caplog.text) == (inside != "gathering")


async def test_what_is_active_in_the_same_thread_is_no_ones_guess(opened):
    """Two tasks of an event loop that runs in a thread: one has a builder, the other has none."""
    model = opened("one")

    async def tasks():
        begins = asyncio.Event()

        async def without():
            await begins.wait()
            judge()

        other = asyncio.ensure_future(without())
        with model.metrics_builder("eval").activate_context():
            begins.set()
            await other

    thread = threading.Thread(target=lambda: asyncio.run(tasks()))
    thread.start()
    thread.join()
    assert costs(await model.log(split="train"))["costs/train/judge"] == 1.0


async def test_dropped_groups_are_paid_with_those_that_were_kept(opened):
    one, two = opened("one"), opened("two")

    async def drops(group):
        judge()
        return None if group.metadata["id"] == "dropped" else group

    async def replaced(group):
        judge()
        return art.TrajectoryGroup([art.Trajectory()])

    groups = [
        art.TrajectoryGroup([rollout()], metadata={"id": name}) for name in ("dropped", "kept")
    ]
    kept = await gather(*groups, after_each=drops)
    assert costs(await one.log(kept)) == eval_costs(4.0)
    assert costs(await two.log(await gather(*groups[:0], after_each=drops))) == {}
    (other,) = await gather(art.TrajectoryGroup([rollout()]), after_each=replaced)
    assert costs(await two.log([other])) == eval_costs(2.0)


async def test_groups_that_are_thrown_away_after_the_gathering_are_paid_with_the_others(opened):
    one, _ = opened("one"), opened("two")
    kept, thrown = await gather(*[art.TrajectoryGroup([rollout()]) for _ in range(2)])
    assert costs(await one.log([kept])) == eval_costs(1.0)
    del thrown
    await asyncio.sleep(0)  # the event loop forgets what woke this task
    gc.collect()
    assert costs(await one.log()) == eval_costs(1.0)


async def test_trajectories_carry_what_their_group_cost_once(opened):
    one, two = opened("one"), opened("two")
    loose = await art.gather_trajectories([rollout(), rollout(), fails()], pbar_desc=None)
    copied = [copy.deepcopy(loose[0]), copy.copy(loose[1])]
    assert costs(await one.log(loose[:1])) == eval_costs(3.0)
    assert costs(await two.log([art.TrajectoryGroup(loose), *[art.TrajectoryGroup(copied)]])) == {}
    assert pickle.loads(pickle.dumps(copied)) == copied


async def test_a_group_made_in_a_coroutine_and_a_group_awaited_alone_are_paid(opened):
    one, _ = opened("one"), opened("two")

    async def makes():
        judge()
        return await art.TrajectoryGroup([rollout()])

    async def pending():
        judge()
        return art.TrajectoryGroup([rollout()])

    alone = await art.TrajectoryGroup([rollout(), fails()])
    assert costs(await one.log([alone])) == eval_costs(2.0)
    groups = await gather(makes(), pending())
    assert costs(await one.log(groups)) == eval_costs(4.0)


async def test_a_gathering_that_fails_is_paid_by_the_last_open_model_and_said(opened, caplog):
    one, two = opened("one"), opened("two")
    with pytest.raises(RolloutError):
        await gather(art.TrajectoryGroup([fails()]))
    await two.log(metrics={"x": 1.0})
    await two.close()
    assert "several models were open" not in caplog.text
    await one.close()
    assert "paid calls of ['judge'] belong to no group that was logged" in caplog.text
    (row,) = one.run.history.path.read_text().splitlines()
    assert '"costs/train/judge":1.0' in row.replace(" ", "")


async def test_the_groups_of_a_gathering_that_failed_may_be_logged(opened):
    one, _ = opened("one"), opened("two")
    with pytest.raises(RolloutError) as caught:
        await gather(art.TrajectoryGroup([fails()]))
    assert costs(await one.log(caught.value.groups)) == eval_costs(1.0)


async def test_a_cancelled_gathering_is_paid_by_the_only_open_model(opened):
    model, paid = opened("one"), asyncio.Event()

    async def hangs():
        judge()
        paid.set()
        await asyncio.sleep(60)

    task = asyncio.ensure_future(gather(art.TrajectoryGroup([hangs()])))
    await paid.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert costs(await model.log())["costs/train/judge"] == 1.0


async def test_what_is_never_logged_is_paid_when_the_only_model_is_closed(opened, caplog):
    model = opened("one")
    groups = await gather(art.TrajectoryGroup([rollout()]))
    await model.close()
    assert len(groups) == 1
    assert model.run.history.last.metrics["costs/train/judge"] == 1.0
    assert not caplog.text


async def test_a_call_after_its_group_was_logged_is_in_the_next_row(opened):
    one, _ = opened("one"), opened("two")
    late, is_logged = [], asyncio.Event()

    async def leaves_a_task():
        async def goes_on():
            await is_logged.wait()
            judge()

        late.append(asyncio.ensure_future(goes_on()))
        return art.Trajectory()

    groups = await gather(art.TrajectoryGroup([leaves_a_task()]))
    assert costs(await one.log(groups)) == {}
    is_logged.set()
    await late[0]
    assert costs(await one.log()) == eval_costs(1.0)


async def test_a_call_of_a_group_that_nobody_holds_any_more_goes_to_the_gatherings_owner(opened):
    gathering = Account(UNOWNED, gathering=True)
    groups = [Account(gathering), Account(gathering)]
    one, _ = opened("one"), opened("two")
    groups[0].settle(one.metrics_builder("eval"))
    groups[1].add(pending.PendingCall(source="judge", prices=one.metrics_builder().prices))
    groups.clear()
    row = await one.log()
    assert row.metrics["data/step_unpriced_calls"] == 1.0


async def test_the_price_of_the_model_that_pays_comes_before_that_of_another(opened):
    one, two = opened("one").metrics_builder("eval"), opened("two").metrics_builder("eval")
    one.register_model_pricing("registered", **DOLLAR)
    two.register_model_pricing("registered", prompt_per_million=5.0, completion_per_million=5.0)
    call = pending.PendingCall(
        source="judge",
        prices=one.prices,
        model_name="registered",
        usage=art.TokenUsage(input_tokens=1_000_000),
    )
    assert call.quote() == 1.0
    call.book(two)
    assert two.prices is not one.prices
    with two.ledger.taking("val", SimpleNamespace(last=None)) as drained:
        combined, _ = drained.combined(two.ledger.taxonomy)
    assert combined == {"costs/eval/judge": 5.0}


async def test_a_price_registered_with_another_model_prices_the_call(opened):
    one, two = opened("one"), opened("two")
    one.metrics_builder().register_model_pricing("registered", **DOLLAR)
    call = judge_at_a_registered_price
    groups = await gather(art.TrajectoryGroup([rollout(call=call)]))
    assert costs(await two.log(groups)) == eval_costs(1.0)
    two.metrics_builder().register_model_pricing(
        "registered", prompt_per_million=5.0, completion_per_million=5.0
    )
    groups = await gather(art.TrajectoryGroup([rollout(call=call)]))
    assert costs(await two.log(groups)) == eval_costs(5.0)


async def test_a_missing_price_is_reported_before_rollouts_sample(opened, caplog):
    art.track_api_cost(source="late", provider="acme", model_name="late")
    art.track_api_cost(source="known", provider="acme", model_name="known")
    opened("one").metrics_builder().register_model_pricing("known", **DOLLAR)
    reported = []

    async def samples():
        reported.append("'late' of provider 'acme'" in caplog.text)
        return art.Trajectory()

    for _ in range(2):
        await gather(art.TrajectoryGroup([samples()]))
    assert reported == [True, True]
    assert caplog.text.count("'late' of provider 'acme'") == 1
    assert "'known'" not in caplog.text
    art.track_api_cost(source="late", provider="acme", model_name="later")
    with opened("two").metrics_builder("eval").activate_context():
        await gather(art.TrajectoryGroup([samples()]))
    assert "'later' of provider 'acme'" in caplog.text


async def test_a_missing_price_fails_the_rollout_before_the_call(opened):
    opened("one"), opened("two")
    with pytest.raises(RolloutError, match="no price is known for model 'registered'"):
        await gather(art.TrajectoryGroup([rollout(call=judge_at_a_registered_price)]))
    assert unsettled() == []


async def test_calls_without_a_model_are_paid_by_the_next_and_said_once(opened, caplog):
    with pytest.raises(PricingError):
        judge_at_a_registered_price()
    judge()
    judge()
    assert caplog.text.count("and no model is open") == 1
    assert costs(await opened("one").log())["costs/train/judge"] == 2.0


async def test_with_several_models_a_call_outside_of_a_gathering_goes_to_the_next_that_logs(
    opened, caplog
):
    one, two = opened("one"), opened("two")
    trajectories = await art.gather_trajectories([rollout()], pbar_desc=None)
    judge()
    assert "several models are open: their cost is kept" in caplog.text
    assert costs(await one.log(metrics={"x": 1.0}, split="train")) == {}
    assert costs(await two.log(trajectories)) == eval_costs(2.0)
    assert "the model that logged groups next has their cost" in caplog.text


async def test_a_call_outside_of_a_gathering_has_the_context_of_the_next_groups(opened, caplog):
    model = opened("one")
    trajectories = [await rollout(), await rollout()]
    assert costs(await model.log(trajectories)) == eval_costs(2.0)
    judge()
    assert costs(await model.log(metrics={"x": 1.0}))["costs/train/judge"] == 1.0
    judge()
    await model.close()
    assert model.run.history.last.metrics["costs/cum/train/judge"] == 2.0
    assert not caplog.text


async def test_calls_that_cannot_be_read_are_counted_with_their_group(opened, caplog):
    one, _ = opened("one"), opened("two")
    broken = art.track_api_cost(
        source="judge", provider="acme", model_name="j", response_getter=len, **DOLLAR
    )(lambda: 3)
    groups = await gather(art.TrajectoryGroup([rollout(call=broken)]))
    row = await one.log(groups, split="train")
    assert row.metrics["data/step_unpriced_calls"] == 1.0


async def test_what_no_run_has_is_said_when_the_program_ends(opened, caplog):
    pending.report_unpaid()
    assert not caplog.text
    opened("one"), opened("two")
    judge()
    UNOWNED.add(pending.PendingCall(source="read", prices=opened("three").metrics_builder().prices))
    caplog.clear()
    pending.report_unpaid()
    assert "2 paid calls of ['judge', 'read'] are in no run: about $1." in caplog.text
    assert not UNOWNED.waiting


def test_a_forked_process_leaves_the_calls_to_its_parent():
    judge()
    child = os.fork()
    if child == 0:
        os._exit(len(unsettled()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert UNOWNED.waiting


async def test_training_pays_for_its_groups_before_the_step_begins(tmp_path):
    from art_core.testing.echo import EchoBackend

    backend = EchoBackend()
    model = art.TrainableModel(
        name="t", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    groups = await gather(art.TrajectoryGroup([rollout(0.0), rollout(1.0)]))
    with pytest.raises(art.ConfigError):
        await model.train(groups, loss_fn="no such loss")
    await model.train(groups)
    assert model.run.history.last.metrics["costs/train/judge"] == 2.0
    await model.close()
    await backend.close()
