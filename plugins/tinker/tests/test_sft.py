"""Supervised fine-tuning at the service: what it is sent, what it costs, and its optimizer."""

from __future__ import annotations

import pytest

import art_core as art

OPTIONS = {"learning_rate": 1e-3, "shuffle": False}


def lessons(*answers):
    return [
        art.Trajectory(
            messages_and_choices=[
                {"role": "user", "content": "ab"},
                {"role": "assistant", "content": answer},
            ]
        )
        for answer in answers
    ]


@pytest.fixture
async def running(account, make_model):
    backend, model = art.backend("tinker", step_timeout_s=30.0), make_model()
    await model.register(backend)
    yield backend, model
    await model.close()
    await backend.close()


async def test_the_service_gets_the_mean_over_the_assistants_tokens(running, account):
    _, model = running
    await model.train_sft(lessons("yes", "no"), batch_size=2, **OPTIONS)
    (request,) = [r for r in account.requests if "data" in r]
    assert (request["loss_fn"], request["loss_fn_config"]) == ("cross_entropy", None)
    inputs = [datum.loss_fn_inputs for datum in request["data"]]
    assert all(set(each) == {"target_tokens", "weights"} for each in inputs)
    trained = [
        [int(t) for t, w in zip(each["target_tokens"].data, each["weights"].data, strict=True) if w]
        for each in inputs
    ]
    assert trained == [[*b"yes", 258], [*b"no", 258]]
    weights = [w for each in inputs for w in each["weights"].data if w]
    assert weights == pytest.approx([1 / 7] * 7)


async def test_the_loss_falls_and_tokens_are_priced(running, account):
    _, model = running
    await model.train_sft(lessons("yes", "no"), batch_size=2, epochs=8, **OPTIONS)
    rows = list(art.LoggedRun(model.run_dir).rows())
    assert len(rows) == 8
    assert rows[-1].metrics["loss/train"] < 0.8 * rows[0].metrics["loss/train"]
    metrics = rows[0].metrics
    assert metrics["data/step_trainer_tokens"] == 7
    data = next(r["data"] for r in account.requests if "data" in r)
    tokens = sum(len(datum.model_input.to_ints()) for datum in data)
    assert metrics["costs/train/tinker_train"] == pytest.approx(5e-6 * tokens)


async def test_training_on_rewards_begins_with_an_optimizer_of_its_own(
    running, account, make_model
):
    backend, model = running
    await model.train_sft(lessons("yes", "no"), batch_size=1, **OPTIONS)
    choice = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(),
        messages=[{"role": "user", "content": "ab"}],
        max_tokens=4,
    )
    group = art.TrajectoryGroup(
        art.Trajectory(
            messages_and_choices=[{"role": "user", "content": "ab"}, choice.choices[0]], reward=r
        )
        for r in (0.0, 1.0)
    )
    await model.train([group], mask_truncated=False)
    assert account.calls.count("create_training_client_from_state") == 1
    newest = account.states[backend._served.of(model).remote.store.newest().state_path]
    assert newest.optimizer["steps"] == 1  # and not 3
    await model.train([group], mask_truncated=False)
    assert account.calls.count("create_training_client_from_state") == 1
    await backend.close()
    again, resumed = art.backend("tinker", step_timeout_s=30.0), make_model()
    await resumed.register(again)
    await resumed.train_sft(lessons("yes"), batch_size=1, **OPTIONS)
    assert account.calls.count("create_training_client_from_state") == 2
    await resumed.close()
    await again.close()


async def test_an_optimizer_that_the_service_lacks_is_refused(running):
    backend, model = running
    with pytest.raises(art.ConfigError, match="can't train 'cross_entropy' with optimizer='muon'"):
        await backend.train_sft(model, [lessons("yes")], optimizer="muon")
