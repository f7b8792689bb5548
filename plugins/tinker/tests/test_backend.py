"""The backend over a service that samples and steps: steps, resumes, failures, costs, names."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math

import pytest
import tinker

import art_core as art
from art_core.endpoint.host import EndpointHost

PROMPT = "ab"
service_ends = pytest.mark.skipif(
    not hasattr(tinker.ServiceClient, "close"), reason="this SDK cannot end a session"
)
gives_alternatives = pytest.mark.skipif(
    "topk_sample_logprobs" not in inspect.signature(tinker.SamplingClient.sample).parameters,
    reason="this SDK gives no alternatives to a sampled token",
)


async def ask(model, messages=PROMPT, step=None, **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(step), messages=messages, **{"max_tokens": 4, **options}
    )
    return completion.choices[0]


async def group(model, rewards=(0.0, 1.0), **options):
    async def rollout(reward, seed):
        choice = await ask(model, seed=seed, **options)
        question = {"role": "user", "content": PROMPT}
        return art.Trajectory(messages_and_choices=[question, choice], reward=reward)

    attempts = art.TrajectoryGroup(rollout(reward, n) for n, reward in enumerate(rewards))
    return await art.gather_trajectory_groups([attempts], pbar_desc=None, max_exceptions=0)


@pytest.fixture
async def running(account, make_model):
    """A registered model, and its backend."""
    backend, model = art.backend("tinker", step_timeout_s=5.0), make_model()
    await model.register(backend)
    yield backend, model
    await model.close()
    await backend.close()


def datums(account):
    return [request["data"] for request in account.requests if "data" in request]


async def test_targets_are_shifted_by_one_and_advantages_lie_on_what_was_sampled(running, account):
    _, model = running
    groups = await group(model)
    await model.train(groups, mask_truncated=False)
    ((first, second),) = datums(account)
    for datum, trajectory in zip((first, second), groups[0], strict=True):
        choice = trajectory.messages_and_choices[1]
        ids = [*choice.prompt_token_ids, *choice.token_ids]
        given = {name: tensor.tolist() for name, tensor in datum.loss_fn_inputs.items()}
        sampled = len(choice.token_ids)
        assert datum.model_input.to_ints() == ids[:-1]
        assert given["target_tokens"] == ids[1:]
        # +-1/2, over the tokens of an attempt, over two attempts
        expected = (trajectory.reward - 0.5) / sampled / 2
        zeros = [0.0] * (len(ids) - 1 - sampled)
        assert given["advantages"] == pytest.approx([*zeros, *[expected] * sampled])
        said = [token.logprob for token in choice.logprobs.content]
        assert given["logprobs"] == pytest.approx([*zeros, *said])


async def test_an_older_step_teaches_and_its_texts_are_billed_as_prompts(running, account):
    _, model = running
    await model.train(await group(model), mask_truncated=False, learning_rate=1e-2)
    teacher = await art.teacher(model, step=0)
    groups = await group(model, rewards=(0.0, 0.0))
    billed = model.run.history.last.metrics["costs/cum/train/tinker_prefill"]
    account.requests.clear()
    result = await model.train(groups, teacher=teacher, mask_truncated=False)
    assert result.metrics["loss/teacher_kl"] > 0
    ((first, second),) = datums(account)
    for datum, trajectory in zip((first, second), groups[0], strict=True):
        choice = trajectory.messages_and_choices[1]
        gains = datum.loss_fn_inputs["advantages"].tolist()[-len(choice.token_ids) :]
        own = [entry.logprob for entry in choice.logprobs.content]
        tokens = sum(len(t.messages_and_choices[1].token_ids) for t in groups[0])
        assert gains == pytest.approx(
            [(t - o) / tokens for t, o in zip(choice.teacher_logprobs, own, strict=True)], abs=1e-6
        )
    metrics = model.run.history.last.metrics
    evaluated = metrics["costs/cum/eval/tinker_prefill"]
    assert metrics["costs/cum/train/tinker_prefill"] > billed
    assert evaluated > 0, "the teacher's name is that of an older step"


async def test_every_turn_of_a_conversation_is_trained(running, account):
    _, model = running

    async def rollout(reward):
        talk = [{"role": "user", "content": "a"}]
        talk.append(await ask(model, talk))
        answer = {"role": "assistant", "content": talk[1].message.content}
        talk.append({"role": "user", "content": "b"})
        talk.append(await ask(model, [talk[0], answer, talk[2]]))
        return art.Trajectory(messages_and_choices=talk, reward=reward)

    attempts = art.TrajectoryGroup(rollout(reward) for reward in (0.0, 1.0))
    groups = await art.gather_trajectory_groups([attempts], pbar_desc=None, max_exceptions=0)
    await model.train(groups, mask_truncated=False)
    trained = sum(
        sum(value != 0 for value in datum.loss_fn_inputs["advantages"].tolist())
        for datum in datums(account)[0]
    )
    assert trained == sum(
        len(item.token_ids)
        for trajectory in groups[0]
        for item in trajectory.messages_and_choices
        if not isinstance(item, dict)
    )


@pytest.mark.parametrize(
    ("options", "name", "config"),
    [
        ({}, "cispo", (0.0, 5.0)),
        ({"epsilon": 0.5, "epsilon_high": 0.25}, "cispo", (0.5, 1.25)),
        ({"loss_fn": "ppo"}, "ppo", (0.8, 1.28)),
        ({"loss_fn": "importance_sampling"}, "cispo", (0.0, 2.0)),
        (
            {"loss_fn": "importance_sampling", "truncated_importance_sampling": math.inf},
            "importance_sampling",
            None,
        ),
    ],
)
async def test_losses_go_to_the_service_under_its_names(running, account, options, name, config):
    _, model = running
    result = await model.train(await group(model), mask_truncated=False, **options)
    request = next(request for request in account.requests if "data" in request)
    assert request["loss_fn"] == name
    sent = request["loss_fn_config"]
    assert tuple(sent.values()) == pytest.approx(config) if config else sent is None
    # sampled from these very weights: the ratio is 1, whatever the loss
    assert result.metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["loss/clipped_token_fraction"] == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_fn": "gspo"}, "it has: cispo, distill, importance_sampling, ppo"),
        ({"kl_penalty_coef": 0.1}, "kl_penalty_coef"),
        ({"advantage_baseline": "value"}, "a critic, which only backend 'local' trains"),
        ({"entropy_coef": 0.1}, "can't train 'cispo' with entropy_coef"),
        ({"optimizer": "muon"}, "with optimizer='muon'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level"),
        ({"loss_fn": "ppo", "truncated_importance_sampling": 2.0}, "truncated_importance"),
    ],
)
async def test_what_the_service_can_not_compute_is_refused(running, account, options, said):
    backend, model = running
    with pytest.raises(art.ConfigError, match=said):
        await model.train(await group(model), **options)
    assert await backend.step(model) == 0
    assert not datums(account)


async def test_weight_decay_and_a_scheduled_rate_go_to_the_service(running, account):
    _, model = running
    schedule = art.Schedule(1e-3, warmup_steps=4)
    groups = await group(model)
    await model.train(groups, learning_rate=schedule, weight_decay=0.25, mask_truncated=False)
    (sent,) = [r["parameters"] for r in account.requests if "parameters" in r]
    assert (sent.learning_rate, sent.weight_decay) == (2.5e-4, 0.25)


async def test_forward_and_step_are_sent_before_either_is_waited_for(running, account):
    _, model = running
    groups = await group(model, (0.0, 1.0, 0.0, 1.0))
    account.calls.clear()
    await model.train(groups, mask_truncated=False, grad_accumulation_sequences=2)
    assert account.calls == [
        *["forward_backward", "optim_step"] * 2,
        *["save_state", "save_weights_for_sampler", "create_sampling_client"],
    ]


async def test_the_optimizer_goes_on_where_it_was(account, make_model):
    async def two_steps(*, restarts, name):
        for _ in range(2 if restarts else 1):
            backend, model = art.backend("tinker"), make_model(name)
            await model.register(backend)
            for _ in range(1 if restarts else 2):
                groups = await group(model)
                await model.train(groups, mask_truncated=False, learning_rate=1e-3)
            newest = (
                json.loads((model.run_dir / "checkpoints" / "0002" / "manifest.json").read_bytes())
                if await backend.step(model) == 2
                else None
            )
            await model.close()
            await backend.close()
        return account.states[newest["state_path"]]

    straight = await two_steps(restarts=False, name="straight")
    resumed = await two_steps(restarts=True, name="resumed")
    assert resumed.optimizer["steps"] == straight.optimizer["steps"] == 2
    for name, weights in straight.weights.items():
        assert (resumed.weights[name] - weights).abs().max() < 1e-6


async def test_costs_are_the_tokens_times_their_prices(running, account):
    """$1 a million to prefill, $3 to sample, $5 to train on."""
    _, model = running
    groups = await group(model)
    await model.train(groups, mask_truncated=False)
    choices = [trajectory.messages_and_choices[1] for trajectory in groups[0]]
    prompt = sum(len(choice.prompt_token_ids) for choice in choices)
    sampled = sum(len(choice.token_ids) for choice in choices)
    costs = model.run.history.last.metrics
    assert costs["costs/train/tinker_prefill"] == pytest.approx(prompt * 1e-6)
    assert costs["costs/train/tinker_sample"] == pytest.approx(sampled * 3e-6)
    # each sequence is trained on without its last token, which is only a target
    assert costs["costs/train/tinker_train"] == pytest.approx((prompt + sampled - 2) * 5e-6)
    assert costs["costs/all"] == pytest.approx(costs["costs/train"])
    assert "data/step_unpriced_calls" not in costs


async def test_evaluations_are_booked_apart_and_have_a_session_of_their_own(running, account):
    _, model = running
    with model.metrics_builder("eval").activate_context():
        choice = await ask(model)
    await ask(model, step=0)  # a step that is named is compared, not trained
    with model.metrics_builder("train").activate_context():
        await ask(model, step=0)
    row = await model.log(split="val", metrics={"reward/mean": 1.0})
    prefill = len(choice.prompt_token_ids) * 1e-6
    assert row.metrics["costs/eval/tinker_prefill"] == pytest.approx(2 * prefill)
    assert row.metrics["costs/train/tinker_prefill"] == pytest.approx(prefill)
    tags = [session["art_split"] for session in account.sessions]
    assert tags == ["train", "eval"]
    assert {session["art_run"] for session in account.sessions} == {"demo/agent"}
    kept = json.loads((model.run_dir / "tinker.json").read_bytes())
    assert {session["art_run_id"] for session in account.sessions} == {kept["run_id"]}


async def test_a_base_model_without_a_price_is_reported_when_it_is_registered(
    account, make_model, caplog
):
    account.models["tiny/other"] = 512
    backend, model = art.backend("tinker"), make_model(base_model="tiny/other")
    await model.register(backend)
    assert caplog.text.count("unpriced: calls to 'tiny/other' of 'tinker'") == 1
    assert "data/step_unpriced_calls" not in (await model.log()).metrics
    await model.close()
    await backend.close()


async def test_cached_prefill_without_a_price_is_unpriced_never_free(running, account, caplog):
    _, model = running
    account.cached = 5
    choice = await ask(model)
    row = await model.log(split="train", step=0)
    fresh = len(choice.prompt_token_ids) - 5
    assert row.metrics["costs/train/tinker_prefill"] == pytest.approx(fresh * 1e-6)
    assert row.metrics["data/step_unpriced_calls"] == 1
    (unpriced,) = [receipt for receipt in row.receipts if receipt.get("usd") is None]
    assert unpriced["item"] == "tiny/base:cached-prefill" and unpriced["input_tokens"] == 5


async def test_cached_prefill_has_the_price_that_is_given(account, make_model):
    backend = art.backend("tinker", cached_prefill_per_million=0.1)
    model = make_model()
    await model.register(backend)
    account.cached = 10**6  # of the service's cache; a prompt has fewer
    choice = await ask(model)
    row = await model.log(split="train", step=0)
    tokens = len(choice.prompt_token_ids)
    assert row.metrics["costs/train/tinker_prefill"] == pytest.approx(tokens * 1e-7)
    await model.close()
    await backend.close()


async def test_a_step_that_fails_is_charged_and_the_next_starts_from_the_saved_state(
    running, account
):
    backend, model = running
    await model.train(await group(model), mask_truncated=False)
    account.fail["optim_step"] = RuntimeError("the optimizer is tired")
    with pytest.raises(art.BackendError, match="the optimizer is tired"):
        await model.train(await group(model), mask_truncated=False)
    assert await backend.step(model) == 1
    account.fail.clear()
    account.calls.clear()
    assert (await model.train(await group(model), mask_truncated=False)).step == 2
    assert "create_training_client_from_state_with_optimizer" in account.calls
    costs = model.run.history.last.metrics
    trained = [sum(d.model_input.length for d in data) for data in datums(account)[1:]]
    assert costs["costs/train/tinker_train"] == pytest.approx(sum(trained) * 5e-6)


async def test_a_step_that_the_service_refuses_costs_nothing(running, account):
    _, model = running

    class RefusedByServiceError(Exception):
        status_code = 422

    account.fail["forward_backward"] = RefusedByServiceError("too long")
    with pytest.raises(art.BackendError, match="too long"):
        await model.train(await group(model), mask_truncated=False)
    row = await model.log(split="train", step=0)
    assert "costs/train/tinker_train" not in row.metrics


async def test_a_key_that_is_not_taken_any_more_costs_nothing(running, account):
    _, model = running

    class ExpiredError(Exception):
        status_code = 401

    groups = await group(model)
    account.fail["forward_backward"] = ExpiredError("expired")
    with pytest.raises(art.ConfigError, match="does not accept the API key"):
        await model.train(groups, mask_truncated=False)
    row = await model.log(split="train", step=0)
    assert "costs/train/tinker_train" not in row.metrics


async def test_of_a_step_that_is_refused_in_the_middle_what_was_computed_is_charged(
    running, account
):
    _, model = running

    class RefusedByServiceError(Exception):
        status_code = 422

    groups = await group(model)
    account.fail["optim_step"] = RefusedByServiceError("no such learning rate")
    with pytest.raises(art.BackendError, match="no such learning rate"):
        await model.train(groups, mask_truncated=False, grad_accumulation_sequences=1)
    row = await model.log(split="train", step=0)
    first = datums(account)[0]
    tokens = sum(datum.model_input.length for datum in first)
    assert row.metrics["costs/train/tinker_train"] == pytest.approx(tokens * 5e-6)


async def test_weights_whose_step_could_not_be_noted_are_served_no_more_when_training_goes_on(
    running, account, monkeypatch
):
    backend, model = running
    await model.train(await group(model), mask_truncated=False)
    groups = await group(model)

    def full(self, manifest):
        raise art.BackendError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("art_tinker.store.Manifests.write", full)
        with pytest.raises(art.BackendError, match="no space left"):
            await model.train(groups, mask_truncated=False)
    assert await backend.step(model) == 1
    account.fail["forward_backward"] = RuntimeError("lost")
    with pytest.raises(art.BackendError, match="lost"):
        await model.train(groups, mask_truncated=False)
    assert (await ask(model)).policy_version == 1


async def test_a_service_that_is_silent_is_given_up_in_time(account, make_model):
    account.delay_s["get_server_capabilities"] = 5.0
    backend = art.backend("tinker", base_url="http://127.0.0.1:9", connect_timeout_s=0.1)
    with pytest.raises(art.BackendError, match="did not answer within 0.1 s.*refused"):
        await make_model().register(backend)


async def test_an_unknown_base_model_names_those_of_the_service(account, make_model):
    with pytest.raises(art.ConfigError, match=r"the service has: tiny/base. Did you mean"):
        await make_model(base_model="tiny/bass").register(art.backend("tinker"))


@service_ends
@pytest.mark.parametrize(
    "call", ["get_server_capabilities", "create_lora_training_client", "create_sampling_client"]
)
async def test_a_session_is_ended_when_the_model_can_not_be_registered(
    account, make_model, monkeypatch, call
):
    class NoHost(EndpointHost):
        def start(self, timeout_s=30.0):
            raise art.BackendError("no port is free")

    account.fail[call] = RuntimeError("not now")
    monkeypatch.setattr("art_tinker.backend.EndpointHost", NoHost)
    with pytest.raises(art.BackendError, match="not now|no port is free"):
        await make_model().register(art.backend("tinker"))
    assert len(account.sessions) == account.calls.count("close") == 1


@service_ends
async def test_a_model_that_is_registered_while_it_is_being_left_begins_after_its_last_step(
    running, account
):
    backend, model = running
    groups = await group(model)
    account.delay_s["optim_step"] = 0.5
    step = asyncio.create_task(model.train(groups, mask_truncated=False))
    while "optim_step" not in account.calls:
        await asyncio.sleep(0.01)
    leaving = asyncio.create_task(backend.unregister(model))
    await asyncio.sleep(0)
    await model.register(backend)
    assert leaving.done() and (await step).step == 1
    assert await backend.step(model) == 1
    again = account.calls.index("create_training_client_from_state_with_optimizer")
    assert account.calls.index("close") < again


@service_ends
async def test_a_backend_that_is_closed_while_a_model_registers_leaves_no_session(
    account, make_model
):
    account.delay_s["create_lora_training_client"] = 0.3
    backend = art.backend("tinker")
    registering = asyncio.create_task(make_model().register(backend))
    while not account.calls:
        await asyncio.sleep(0.01)
    await backend.close()
    with pytest.raises(art.BackendError, match="is closed"):
        await registering
    assert len(account.sessions) == account.calls.count("close") == 1


async def test_a_run_keeps_its_base_model_and_its_rank(running, account, make_model):
    backend, model = running
    await model.train(await group(model), mask_truncated=False)
    await backend.unregister(model)
    await model.close()
    account.models["tiny/other"] = 512
    other = make_model(base_model="tiny/other")
    with pytest.raises(art.ConfigError, match="with base_model='tiny/base', not 'tiny/other'"):
        await other.register(backend)
    await other.close()
    with pytest.raises(art.ConfigError, match="with lora_rank=32, not 8"):
        await make_model().register(art.backend("tinker", lora_rank=8))


async def test_a_refused_key_is_an_error_that_does_not_show_it(account, make_model):
    account.fail["get_server_capabilities"] = RuntimeError(
        "the api_key tml-a-key-of-the-tests is not known"
    )
    with pytest.raises(art.ConfigError, match="TINKER_API_KEY") as caught:
        await make_model().register(art.backend("tinker"))
    assert "tml-a-key" not in str(caught.value)
    assert "tml-a-key" not in repr(art.backend("tinker", api_key="tml-a-key")._options)


def test_a_missing_sdk_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tinker", None)
    with pytest.raises(art.ConfigError, match="pip install 'tinker>=0.20'"):
        art.backend("tinker")


@pytest.mark.parametrize(
    "options",
    [
        {"lora_rank": 0},
        {"context_length": 1.5},
        {"cached_prefill_per_million": -1.0},
        {"cached_prefill_per_million": "0.1"},
        {"step_timeout_s": math.nan},
        {"connect_timeout_s": "30"},
    ],
)
def test_an_option_that_can_not_be_is_refused(options):
    with pytest.raises(art.ConfigError, match=next(iter(options))):
        art.backend("tinker", **options)


async def test_deleting_a_checkpoint_deletes_its_states_at_the_service(running, account):
    backend, model = running
    for _ in range(2):
        await model.train(await group(model), mask_truncated=False)
    assert len(account.states) == 5  # the base, and two of each step
    assert await backend.delete_checkpoints(model, []) == [1]
    assert len(account.states) == 3
    assert [c.step for c in await backend.checkpoints(model)] == [2]


async def test_a_checkpoint_that_is_gone_at_the_service_is_forgotten(running, account):
    backend, model = running

    class GoneError(Exception):
        status_code = 404

    for _ in range(2):
        await model.train(await group(model), mask_truncated=False)
    account.fail["delete_checkpoint"] = GoneError("not found")
    assert await backend.delete_checkpoints(model, []) == [1]


async def test_a_path_that_the_sdk_can_not_delete_stays_there_and_is_told(running, account, caplog):
    backend, model = running
    for _ in range(2):
        await model.train(await group(model), mask_truncated=False)
    account.fail["delete_checkpoint"] = ValueError("Invalid tinker path")
    assert await backend.delete_checkpoints(model, []) == [1]
    assert "stays at the service" in caplog.text
    account.fail["delete_checkpoint"] = RuntimeError("busy")
    await model.train(await group(model), mask_truncated=False)
    with pytest.raises(art.BackendError, match="busy"):
        await backend.delete_checkpoints(model, [])
    assert [c.step for c in await backend.checkpoints(model)] == [2, 3]


async def test_an_answer_that_nobody_waits_for_is_charged_all_the_same(running, account):
    _, model = running
    account.delay_s["sample"] = 0.5
    asking = asyncio.create_task(ask(model))
    while not account.requests:
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not model.run.ledger.waiting
    while not model.run.ledger.waiting:
        await asyncio.sleep(0.01)
    row = await model.log(split="train", step=0)
    assert row.metrics["costs/train/tinker_sample"] > 0


@service_ends
async def test_what_is_sampled_while_serving_ends_is_charged_all_the_same(running, account):
    backend, model = running
    account.delay_s["sample"] = 3.0  # longer than the endpoint takes to stop
    asking = asyncio.create_task(ask(model, max_tokens=4))
    while not account.requests:
        await asyncio.sleep(0.01)
    await backend.unregister(model)
    assert account.calls[-2:] == ["sample", "close"]
    row = await model.log(split="train", step=0)
    assert row.metrics["costs/train/tinker_sample"] > 0
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


@gives_alternatives
async def test_alternatives_to_what_was_sampled_are_told_where_they_are_asked_for(running):
    _, model = running
    plain, told = await ask(model, seed=1), await ask(model, seed=1, logprobs=True, top_logprobs=2)
    assert told.token_ids == plain.token_ids
    assert {len(token.top_logprobs) for token in plain.logprobs.content} == {0}
    for token in told.logprobs.content:
        best, second = (alternative.logprob for alternative in token.top_logprobs)
        assert second <= best and token.logprob <= best + 1e-6


async def test_a_failing_sampler_is_an_error_of_the_engine(running, account):
    from openai import InternalServerError

    _, model = running
    account.fail["sample"] = RuntimeError("no capacity")
    client = model.openai_client().with_options(max_retries=0)
    with pytest.raises(InternalServerError, match="no capacity"):
        await client.chat.completions.create(
            model="agent", messages=[{"role": "user", "content": "a"}], max_tokens=2
        )


async def test_a_step_without_a_checkpoint_is_served_and_not_kept(running, account, caplog):
    backend, model = running
    for keep in (True, False):
        await model.train(await group(model), mask_truncated=False, save_checkpoint=keep)
    assert (await ask(model)).policy_version == 2
    assert [c.step for c in await backend.checkpoints(model)] == [1]
    account.fail["forward_backward"] = RuntimeError("lost")
    with pytest.raises(art.BackendError):
        await model.train(await group(model), mask_truncated=False)
    account.fail.clear()
    with caplog.at_level(logging.WARNING):
        assert (await model.train(await group(model), mask_truncated=False)).step == 2
    assert "continuing from step 1" in caplog.text


def test_the_sdk_under_test_is_the_real_one():
    assert tinker.types.ModelInput.from_ints([1, 2]).length == 2
