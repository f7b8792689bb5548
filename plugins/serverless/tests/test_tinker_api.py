"""Tinker's API: the real SDK against a real server with the tiny model."""

from __future__ import annotations

import gc
import os
import signal
import time
import urllib.request

import numpy as np
import pytest
import tinker
from tinker import types
from tinker_server import KEY, tinker_server

import art_core as art

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    # the SDK leaves the connection open over which it asked for its settings
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:DEPRECATED"),
]
IDS = list(range(40, 60))


@pytest.fixture(autouse=True)
def connections_that_the_sdk_left_open_are_collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from art_local.testing.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(tiny, place):
    with tinker_server(place, {"tiny/base": str(tiny)}) as running:
        yield running


@pytest.fixture
def service(server):
    client = tinker.ServiceClient(base_url=server.url, api_key=KEY, user_metadata={"of": "tests"})
    yield client
    client.close("success").result()


@pytest.fixture
def rest(server):
    return tinker.RestClient(base_url=server.url, api_key=KEY)


def training_client(service, **options):
    given = {"base_model": "tiny/base", "rank": 8, "seed": 1, **options}
    return service.create_lora_training_client(**given).result()


def datum(ids=IDS, **inputs):
    size = len(ids) - 1
    tensors = {
        name: types.TensorData.from_numpy(np.full(size, value, np.float32))
        for name, value in inputs.items()
    }
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": ids[1:], **tensors},
    )


def stepped(client, learning_rate=1e-2, loss="cross_entropy", data=None):
    passed = client.forward_backward(data or [datum(weights=1.0)], loss)
    step = client.optim_step(types.AdamParams(learning_rate=learning_rate))
    return passed.result(), step.result()


def logprobs_of(output):
    return output.loss_fn_outputs[0]["logprobs"].to_numpy()


def prompt(ids=(40, 41, 42)):
    return types.ModelInput.from_ints(list(ids))


def test_base_models_are_listed_with_their_context(rest):
    (model,) = rest.get_server_capabilities().result().supported_models
    assert (model.model_name, model.max_context_length) == ("tiny/base", 512)


def test_steps_lower_the_loss_and_each_is_a_priced_row(service, place):
    client = training_client(service)
    info = client.get_info()
    assert (info.model_data.model_name, info.lora_rank) == ("tiny/base", 8)
    losses, costs = [], []
    for _ in range(3):
        passed, step = stepped(client)
        losses.append(passed.metrics["loss:sum"])
        costs.append(step.metrics["costs/gpu"])
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] == pytest.approx(-float(logprobs_first(client).sum()), rel=0.5)
    run = art.open_run(place / "tinker" / "models" / client.model_id.replace(":", "."))
    rows = [row.metrics for row in run.rows()]
    assert [row["costs/gpu"] for row in rows] == costs
    # a device second costs a dollar, and the steps take no less than their passes
    assert all(row["costs/gpu"] >= row["time/step_trainer_s"] * 0.99 for row in rows)
    assert rows[-1]["data/cum/trainer_tokens"] == 3 * 19


def logprobs_first(client):
    return logprobs_of(client.forward([datum(weights=1.0)], "cross_entropy").result())


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro", "gspo"])
def test_losses_of_reinforcement_learning_train(service, loss):
    client = training_client(service)
    data = [datum(logprobs=-5.0, advantages=1.0)]
    before = logprobs_first(client)
    passed, step = stepped(client, 1e-3, loss, data)
    assert logprobs_of(passed) == pytest.approx(before, abs=1e-5)
    assert passed.loss_fn_outputs[0]["elementwise_loss"].shape == [19]
    assert step.metrics["loss/grad_norm"] > 0
    assert logprobs_first(client).sum() > before.sum()


def test_a_loss_of_the_clients_own_has_the_gradient_of_the_served_one(service):
    data = [datum(weights=1.0)]

    def negative(_, logprobs):
        return -sum(each.sum() for each in logprobs), {"seen:sum": 1.0}

    norms = []
    for custom in (True, False):
        client = training_client(service)
        if custom:
            passed = client.forward_backward_custom(data, negative)
        else:
            passed = client.forward_backward(data, "cross_entropy")
        step = client.optim_step(types.AdamParams(learning_rate=1e-2))
        passed.result()
        norms.append(step.result().metrics["loss/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_large_batches_come_in_parts_whose_gradients_add_up(service):
    client, whole = training_client(service), training_client(service)
    client.holder._client_config = client.holder._client_config.model_copy(
        update={"fwdbwd_max_chunk_len": 1}
    )
    data = [datum(list(range(n, n + 12)), weights=1.0) for n in (10, 50, 90)]
    part = stepped(client, data=data)
    client.holder._client_config = client.holder._client_config.model_copy(
        update={"fwdbwd_max_chunk_len": 1024}
    )
    one = stepped(whole, data=data)
    assert part[0].metrics["loss:sum"] == pytest.approx(one[0].metrics["loss:sum"])
    assert part[1].metrics["loss/grad_norm"] == pytest.approx(
        one[1].metrics["loss/grad_norm"], rel=1e-5
    )


def test_log_probs_of_samples_are_those_of_the_trainer(service):
    client = training_client(service)
    stepped(client)
    sampler = client.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=12, temperature=1.0, seed=5)
    found = sampler.sample(prompt(), 3, params, include_prompt_logprobs=True).result()
    assert len({tuple(each.tokens) for each in found.sequences}) == 3
    for each in found.sequences:
        ids = [40, 41, 42, *each.tokens]
        scored = client.forward([datum(ids, weights=1.0)], "cross_entropy").result()
        assert logprobs_of(scored)[2:] == pytest.approx(np.array(each.logprobs), abs=1e-4)
        assert logprobs_of(scored)[:2] == pytest.approx(found.prompt_logprobs[1:], abs=1e-4)
        assert sampler.compute_logprobs(prompt(ids)).result()[1:] == pytest.approx(
            logprobs_of(scored), abs=1e-4
        )
    again = sampler.sample(prompt(), 3, params).result()
    assert [each.tokens for each in again.sequences] == [each.tokens for each in found.sequences]


def test_a_sampler_keeps_its_weights_while_training_goes_on(service):
    client = training_client(service)
    samplers = []
    for _ in range(6):  # more than stay in memory: the first is read from disk again
        samplers.append(client.save_weights_and_get_sampling_client().result())
        stepped(client)
    base = service.create_sampling_client(base_model="tiny/base").result()
    first = samplers[0].compute_logprobs(prompt(IDS)).result()
    assert first[1:] == pytest.approx(base.compute_logprobs(prompt(IDS)).result()[1:], abs=1e-5)
    last = samplers[-1].compute_logprobs(prompt(IDS)).result()
    assert sum(last[1:]) > sum(first[1:]) + 1


def test_a_run_has_its_newest_samplers_without_a_name(service, place):
    client = training_client(service)
    samplers = [client.save_weights_and_get_sampling_client().result() for _ in range(18)]
    with pytest.raises(tinker.NotFoundError, match="newer ones took its place"):
        samplers[1].compute_logprobs(prompt()).result()
    assert len(samplers[2].compute_logprobs(prompt()).result()) == 3
    assert len(list((place / "tinker" / ".samplers").iterdir())) == 16


def test_samples_end_at_what_stops_them(service):
    sampler = service.create_sampling_client(base_model="tiny/base").result()

    def sampled(stop):
        params = types.SamplingParams(max_tokens=40, temperature=0.0, stop=stop)
        return sampler.sample(prompt(), 1, params, topk_sample_logprobs=2).result().sequences[0]

    free = sampled([])
    assert (free.stop_reason, len(free.tokens)) == ("length", 40)
    assert free.topk_logprobs[0][0][0] == free.tokens[0]
    token = free.tokens[7]
    end = free.tokens.index(token) + 1
    by_id = sampled([token])
    assert (by_id.stop_reason, by_id.tokens) == ("stop", free.tokens[:end])


def test_a_text_stops_a_sample(service, tiny):
    from transformers import AutoTokenizer

    client = training_client(service)
    for _ in range(30):
        stepped(client)  # until the sequence is known by heart
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    sampler = client.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=15, temperature=0.0, stop=tokenizer.decode([50, 51]))
    found = sampler.sample(prompt(IDS[:4]), 1, params).result().sequences[0]
    assert (found.stop_reason, found.tokens) == ("stop", list(range(44, 52)))


def test_a_state_goes_on_with_or_without_its_optimizer(service):
    client = training_client(service)
    stepped(client)
    path = client.save_state("first", user_metadata={"a": "b"}).result().path
    stepped(client)
    expected = logprobs_first(client)
    same = service.create_training_client_from_state_with_optimizer(path).result()
    stepped(same)
    assert logprobs_first(same) == pytest.approx(expected, abs=1e-5)
    fresh = service.create_training_client_from_state(path).result()
    stepped(fresh)
    assert not np.allclose(logprobs_first(fresh), expected, atol=1e-4)
    client.load_state_with_optimizer(path).result()
    stepped(client)
    assert logprobs_first(client) == pytest.approx(expected, abs=1e-5)


def test_checkpoints_are_listed_sampled_from_expire_and_are_deleted(service, rest):
    client = training_client(service)
    stepped(client)
    client.save_state("state").result()
    path = client.save_weights_for_sampler("sampler", ttl_seconds=3600).result().path
    found = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [each.checkpoint_id for each in found] == ["weights/state", "sampler_weights/sampler"]
    assert found[0].expires_at is None and found[1].expires_at is not None
    sampler = service.create_sampling_client(model_path=path).result()
    scored = sampler.compute_logprobs(prompt(IDS)).result()[1:]
    assert scored == pytest.approx(logprobs_first(client), abs=1e-4)
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 8
    run = rest.get_training_run(client.model_id).result()
    assert run.last_checkpoint.checkpoint_id == "weights/state"
    assert client.model_id in {
        each.training_run_id for each in rest.list_training_runs().result().training_runs
    }
    listed = rest.list_user_checkpoints().result().checkpoints
    assert path in {each.tinker_path for each in listed}
    rest.set_checkpoint_ttl_from_tinker_path(path, 1).result()
    rest.delete_checkpoint(client.model_id, "weights/state").result()
    deadline = time.monotonic() + 60
    while True:
        try:
            rest.get_weights_info_by_tinker_path(path).result()
        except tinker.NotFoundError:
            break
        assert time.monotonic() < deadline
    with pytest.raises(tinker.NotFoundError, match="there is no checkpoint"):
        rest.delete_checkpoint(client.model_id, "weights/state").result()


def test_exported_weights_are_downloaded_by_signed_links(service, rest):
    client = training_client(service)
    path = client.save_weights_external("out").result().path
    urls = rest.get_external_weights_urls(path).result().urls
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(urls)
    with urllib.request.urlopen(urls["adapter_config.json"], timeout=30) as answer:
        assert b'"peft_type": "LORA"' in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urls["adapter_config.json"] + "0", timeout=30)


def test_sessions_are_listed_and_end(server, rest):
    service = tinker.ServiceClient(base_url=server.url, api_key=KEY, display_name="named")
    client = training_client(service)
    session_id = service.holder.get_session_id()
    assert session_id in rest.list_sessions().result().sessions
    found = rest.get_session(session_id).result()
    assert (found.display_name, found.training_run_ids) == ("named", [client.model_id])
    service.close("success").result()
    assert session_id not in rest.list_sessions().result().sessions


REFUSED = [
    ({"base_model": "tiny/bas"}, "did you mean|known: tiny/base"),
    ({"rank": 500}, "rank 500 is not served; tiny/base has 1 to 128"),
    ({"train_attn": False}, "train_attn=False are not served"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_a_model_that_is_not_served_is_refused(service, options, words):
    with pytest.raises(tinker.RequestFailedError, match=words) as caught:
        training_client(service, **options)
    assert caught.value.category == "user"


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        ([datum([1, 2, 700], weights=1.0)], "cross_entropy", "token 700 is outside"),
        ([datum(weights=1.0)], "ppo", "lacks 'logprobs'"),
        ([datum(weights=1.0)], "stable_reinforce", "no loss 'stable_reinforce'"),
        ([datum(list(range(200)) * 3, weights=1.0)], "cross_entropy", "context 512"),
    ],
)
def test_data_that_cannot_be_trained_are_refused_and_no_step_is_taken(service, data, loss, words):
    client = training_client(service)
    before = logprobs_first(client)
    passed = client.forward_backward(data, loss)
    step = client.optim_step(types.AdamParams(learning_rate=1e-2))
    with pytest.raises(tinker.RequestFailedError, match=words):
        passed.result()
    with pytest.raises(tinker.RequestFailedError, match="no step was taken"):
        step.result()
    assert logprobs_first(client) == pytest.approx(before)
    stepped(client)  # the next one counts


@pytest.mark.parametrize(
    ("params", "ids", "words"),
    [
        ({"top_k": 3}, (1, 2), "top_k=3 is not served"),
        ({"temperature": -1.0}, (1, 2), "temperature must be between 0"),
        ({}, (1, 999), "token 999 is outside"),
        ({}, tuple(range(200)) * 3, "between 1 and 511 fit"),
    ],
)
def test_samples_that_are_not_served_are_refused(service, params, ids, words):
    sampler = service.create_sampling_client(base_model="tiny/base").result()
    with pytest.raises(tinker.RequestFailedError, match=words):
        sampler.sample(prompt(ids), 1, types.SamplingParams(max_tokens=2, **params)).result()


def test_keys_are_checked(server):
    for key, words in (("tml-another-key", "wrong or missing"), ("another", "'tml-' prefix")):
        with pytest.raises(tinker.TinkerError, match=words):
            tinker.RestClient(base_url=server.url, api_key=key)


def test_checkpoints_of_other_places_are_refused(service):
    for path in ("tinker://../weights/a", "tinker://a:train:0/weights/..", "tinker://a/b"):
        with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError, ValueError)):
            service.create_training_client_from_state(path).result()


def test_two_clients_train_at_the_same_time_and_a_fifth_model_is_refused(service, server):
    other = tinker.ServiceClient(base_url=server.url, api_key=KEY)
    clients = [training_client(each) for each in (service, other, service, other)]
    with pytest.raises(tinker.RequestFailedError, match="4 models are loaded"):
        training_client(service)
    passed = [client.forward_backward([datum(weights=1.0)], "cross_entropy") for client in clients]
    steps = [client.optim_step(types.AdamParams(learning_rate=1e-2)) for client in clients]
    assert len({round(each.result().metrics["loss:sum"], 4) for each in passed}) == 1
    norms = [each.result().metrics["loss/grad_norm"] for each in steps]
    assert norms == pytest.approx([norms[0]] * 4)
    other.close("errored").result()
    training_client(service)  # there is room again


@pytest.mark.slow
def test_a_server_that_was_killed_has_its_checkpoints_and_says_what_is_lost(tiny, tmp_path):
    models = {"tiny/base": str(tiny)}
    with tinker_server(tmp_path, models) as running:
        service = tinker.ServiceClient(base_url=running.url, api_key=KEY)
        client = training_client(service)
        stepped(client)
        path = client.save_state("kept").result().path
        expected = logprobs_first(client)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(60)
    port = int(running.url.rpartition(":")[2])
    with tinker_server(tmp_path, models, port=port) as running:
        with pytest.raises(tinker.NotFoundError, match="the server was restarted"):
            stepped(client)
        fresh = tinker.ServiceClient(base_url=running.url, api_key=KEY)
        again = fresh.create_training_client_from_state_with_optimizer(path).result()
        assert logprobs_first(again) == pytest.approx(expected, abs=1e-5)
        fresh.close("success").result()
