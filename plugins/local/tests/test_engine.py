"""The embedded engine against transformers itself, on a random model of half a million weights."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from art_core.endpoint.engine import Sampling
from art_core.errors import ConfigError, EngineError
from art_local.engine import DeviceTurns, TransformersEngine
from art_local.engine.batch import Batch
from art_local.engine.weights import Weights
from art_local.testing.tiny import save_tiny_model

pytestmark = pytest.mark.torch
GREEDY = Sampling(max_tokens=24, temperature=0.0)
PROMPTS = [list(range(40 + k, 60 + 5 * k)) for k in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(directory)


@pytest.fixture
async def engine(model):
    made = TransformersEngine(model, request_timeout_s=20)
    yield made
    await made.close()


async def sample(engine, prompt, sampling=GREEDY, adapter="base"):
    return [token async for token in engine.generate(prompt, sampling, adapter)]


def ids(tokens):
    return [token.id for token in tokens]


def forward_logprobs(model, prompt, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids(tokens)])).logits.float()
    rows = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(ids(tokens))[:, None])[:, 0]


def assert_logprobs_are_the_models(model, prompt, tokens):
    reported = torch.tensor([token.logprob for token in tokens])
    assert torch.allclose(reported, forward_logprobs(model, prompt, tokens), atol=1e-4)


def noisy_copy(model, seed=1):
    """Other weights of the same shape, as tensors to load and as a model to compare with."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return other, {name: p.detach() for name, p in other.named_parameters()}


async def test_greedy_sampling_equals_generate_for_all_rows_of_a_mixed_batch(engine, model) -> None:
    answers = await asyncio.gather(*[sample(engine, prompt) for prompt in PROMPTS * 2])
    for prompt, tokens in zip(PROMPTS * 2, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        assert ids(tokens) == expected[0, len(prompt) :].tolist()
        assert_logprobs_are_the_models(model, prompt, tokens)
        assert tokens[-1].finish in ("stop", "length")
        assert all(token.finish is None for token in tokens[:-1])


async def test_requests_that_join_and_leave_while_others_decode_sample_as_alone(engine) -> None:
    lengths = [30, 5, 17, 2, 24, 11]
    plans = [Sampling(max_tokens=n, seed=n) for n in lengths]
    alone = [await sample(engine, p, s) for p, s in zip(PROMPTS, plans, strict=True)]

    async def late(delay, prompt, sampling):
        await asyncio.sleep(delay)
        return await sample(engine, prompt, sampling)

    together = await asyncio.gather(
        *[late(0.01 * k, p, s) for k, (p, s) in enumerate(zip(PROMPTS, plans, strict=True))]
    )
    assert [ids(tokens) for tokens in together] == [ids(tokens) for tokens in alone]


async def test_a_seed_repeats_and_other_seeds_differ(engine) -> None:
    first, again, other = await asyncio.gather(
        *[sample(engine, PROMPTS[0], Sampling(max_tokens=24, seed=s)) for s in (1, 1, 2)]
    )
    assert ids(first) == ids(again) != ids(other)


async def test_samples_follow_the_models_distribution_and_top_p_cuts_its_tail(
    engine, model
) -> None:
    with torch.no_grad():
        probs = model(torch.tensor([PROMPTS[0]])).logits[0, -1].float().softmax(-1)
    one = [Sampling(max_tokens=1, seed=s) for s in range(400)]
    drawn = [ids(t)[0] for t in await asyncio.gather(*[sample(engine, PROMPTS[0], s) for s in one])]
    best = int(probs.argmax())
    share, expected = drawn.count(best) / 400, float(probs[best])
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5
    narrow = [Sampling(max_tokens=1, seed=s, top_p=0.02, temperature=0.9) for s in range(40)]
    kept = {
        ids(t)[0] for t in await asyncio.gather(*[sample(engine, PROMPTS[0], s) for s in narrow])
    }
    assert kept <= set(probs.topk(4).indices.tolist())


async def test_logprobs_are_of_the_raw_logits_whatever_the_sampling(engine, model) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.6, top_p=0.8, top_logprobs=3, seed=4)
    tokens = await sample(engine, PROMPTS[1], sampling)
    assert_logprobs_are_the_models(model, PROMPTS[1], tokens)
    values = [logprob for _, logprob in tokens[0].top]
    assert len(values) == 3 and values == sorted(values, reverse=True)


async def test_stop_tokens_end_a_sequence_and_stay_in_it(engine) -> None:
    tokens = await sample(engine, PROMPTS[0])
    stop = tokens[5].id
    cut = await sample(
        engine, PROMPTS[0], Sampling(max_tokens=24, temperature=0.0, stop_token_ids=(stop,))
    )
    assert ids(cut) == ids(tokens)[: ids(tokens).index(stop) + 1] and cut[-1].finish == "stop"


async def test_equal_prompts_are_computed_once(engine, monkeypatch) -> None:
    computed = []
    prefill = type(engine._worker._forward).prefill

    def counting(self, prompts, source, cache):
        computed.append((len(prompts), len(source)))
        return prefill(self, prompts, source, cache)

    monkeypatch.setattr(type(engine._worker._forward), "prefill", counting)
    await asyncio.gather(*[sample(engine, PROMPTS[0]) for _ in range(8)])
    assert computed == [(1, 8)]


async def test_adapters_and_base_mixed_in_flight_each_sample_as_alone(engine, model) -> None:
    others = [noisy_copy(model, seed) for seed in (1, 2)]
    for k, (_, tensors) in enumerate(others):
        engine.load(f"step-{k}", tensors)
    assert engine.adapters == ["base", "step-0", "step-1"]
    names = ["base", "step-0", "step-1"] * 4
    answers = await asyncio.gather(*[sample(engine, PROMPTS[0], GREEDY, name) for name in names])
    by_name = {"base": model, "step-0": others[0][0], "step-1": others[1][0]}
    for name, tokens in zip(names, answers, strict=True):
        assert_logprobs_are_the_models(by_name[name], PROMPTS[0], tokens)
    assert len({tuple(ids(tokens)) for tokens in answers}) == 3


async def test_a_request_keeps_its_weights_when_its_adapter_is_replaced_or_unloaded(
    engine, model
) -> None:
    first, tensors = noisy_copy(model, 1)
    second, others = noisy_copy(model, 2)
    engine.load("now", tensors)
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=40, seed=1), "now")
    tokens = [await anext(stream)]
    engine.load("now", others)
    new = await sample(engine, PROMPTS[0], GREEDY, "now")
    engine.unload("now")
    tokens += [token async for token in stream]
    assert_logprobs_are_the_models(first, PROMPTS[0], tokens)
    assert_logprobs_are_the_models(second, PROMPTS[0], new)
    with pytest.raises(EngineError, match="no adapter 'now'; loaded: base"):
        await sample(engine, PROMPTS[0], GREEDY, "now")


async def test_unloading_base_or_an_unknown_name_does_nothing(engine) -> None:
    engine.unload("base")
    engine.unload("never")
    assert engine.adapters == ["base"]


# peft asks transformers by an old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
async def test_the_base_is_shared_and_survives_peft_in_the_original(model) -> None:
    from peft import LoraConfig, get_peft_model

    own = copy.deepcopy(model)
    engine = TransformersEngine(own)
    shared = {p.data_ptr() for p in own.parameters()}
    assert {p.data_ptr() for p in engine._weights.module.parameters()} == shared
    before = await sample(engine, PROMPTS[0])
    lora = get_peft_model(
        own, LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)
    )
    assert ids(await sample(engine, PROMPTS[0])) == ids(before)
    merged = {}
    for name, module in lora.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.base_layer.weight + module.get_delta_weight("default")
            merged[f"{name}.weight"] = weight
    engine.load("lora", merged)
    tokens = await sample(engine, PROMPTS[0], GREEDY, "lora")
    assert_logprobs_are_the_models(lora.eval(), PROMPTS[0], tokens)
    await engine.close()


def test_a_tied_parameter_given_once_reaches_both_places(model) -> None:
    weights = Weights(model)
    new = torch.zeros_like(model.get_input_embeddings().weight)
    weights.load("zero", {"model.embed_tokens.weight": new})
    weights.activate(weights.get("zero"))
    assert weights.module.lm_head.weight is weights.module.model.embed_tokens.weight
    assert not weights.module.lm_head.weight.any()
    weights.load("head", {"lm_head.weight": new})
    weights.activate(weights.get("head"))
    assert not weights.module.lm_head.weight.any()
    assert weights.module.model.embed_tokens.weight.any()


def test_a_parameter_that_does_not_fit_is_refused_by_name(model) -> None:
    weights = Weights(model)
    with pytest.raises(ConfigError, match=r"no parameter 'model\.norm\.wait'.*Did you mean"):
        weights.load("x", {"model.norm.wait": torch.zeros(128)})
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' has shape \[128\], got \[3\]"):
        weights.load("x", {"model.norm.weight": torch.zeros(3)})


async def test_weights_that_are_not_finite_fail_their_requests_alone(engine, model) -> None:
    engine.load("nan", {"model.norm.weight": torch.full((128,), float("nan"))})
    bad, good = await asyncio.gather(
        sample(engine, PROMPTS[0], GREEDY, "nan"),
        sample(engine, PROMPTS[0]),
        return_exceptions=True,
    )
    assert isinstance(bad, EngineError) and "not finite" in str(bad)
    assert len(good) == 24


async def test_closing_the_stream_cancels_the_request_and_frees_its_row(engine) -> None:
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400))
    other = asyncio.create_task(sample(engine, PROMPTS[1]))
    await anext(stream)
    await stream.aclose()
    assert len(await other) == 24
    await asyncio.sleep(0.2)
    assert engine._worker._batches == {}


async def test_more_requests_than_rows_wait_their_turn(model) -> None:
    engine = TransformersEngine(model, max_batch_size=2, prefill_tokens=40)
    answers = await asyncio.gather(*[sample(engine, prompt) for prompt in PROMPTS])
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        assert_logprobs_are_the_models(model, prompt, tokens)
    await engine.close()


async def test_when_the_cache_is_full_rows_are_computed_again_and_nothing_changes(
    model, monkeypatch
) -> None:
    tokens_held, held, sampled = 2 * 60, [], Batch._sample

    def watched(batch, *args):
        held.append((len(batch.rows), batch.cache_tokens))
        return sampled(batch, *args)

    monkeypatch.setattr(Batch, "_sample", watched)
    engine = TransformersEngine(model, cache_bytes=tokens_held * 2 * 2 * 2 * 32 * 4)
    plan = Sampling(max_tokens=60, seed=3)
    answers = await asyncio.gather(*[sample(engine, prompt, plan) for prompt in PROMPTS])
    assert max(tokens for _, tokens in held) <= tokens_held
    assert max(rows for rows, _ in held) > 1
    roomy = TransformersEngine(model)
    expected = [await sample(roomy, prompt, plan) for prompt in PROMPTS]
    assert [ids(tokens) for tokens in answers] == [ids(tokens) for tokens in expected]
    await engine.close()
    await roomy.close()


async def test_the_context_ends_a_sequence(engine, model) -> None:
    prompt = list(range(200)) * 2
    tokens = await sample(engine, prompt, Sampling(max_tokens=10_000, seed=1))
    assert len(tokens) <= engine.context_length - 400 and tokens[-1].finish


@pytest.mark.parametrize(
    ("prompt", "sampling", "reason"),
    [
        ([], GREEDY, "a prompt of 0 tokens"),
        ([1] * 512, GREEDY, "between 1 and 511 fit"),
        ([300], GREEDY, "token 300 is outside the vocabulary of 260"),
        ([1], Sampling(max_tokens=0), "max_tokens must be at least 1"),
    ],
)
async def test_a_request_that_cannot_run_is_refused(engine, prompt, sampling, reason) -> None:
    with pytest.raises(EngineError, match=reason):
        await sample(engine, prompt, sampling)


async def test_a_failing_step_fails_its_requests_with_the_reason_and_the_engine_goes_on(
    engine, monkeypatch
) -> None:
    def broken(self, others):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", broken)
        results = await asyncio.gather(
            *[sample(engine, prompt) for prompt in PROMPTS], return_exceptions=True
        )
    assert {str(result) for result in results} == {"RuntimeError: out of memory"}
    assert len(await sample(engine, PROMPTS[0])) == 24


async def test_a_dead_worker_ends_all_requests_now_and_later_with_the_reason(
    model, monkeypatch
) -> None:
    engine = TransformersEngine(model)
    worker = engine._worker

    def dying():
        raise SystemError("the thread is lost")

    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400))
    await anext(stream)
    monkeypatch.setattr(worker, "_next_batch", dying)
    with pytest.raises(EngineError, match="died of SystemError: the thread is lost"):
        _ = [token async for token in stream]
    with pytest.raises(EngineError, match="died of SystemError"):
        await sample(engine, PROMPTS[0])
    await engine.close()


async def test_closing_ends_requests_under_way_and_a_second_close_does_nothing(model) -> None:
    engine = TransformersEngine(model)
    stream = engine.generate(PROMPTS[0], Sampling(max_tokens=400))
    await anext(stream)
    await engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        _ = [token async for token in stream]
    with pytest.raises(EngineError, match="the engine is closed"):
        await sample(engine, PROMPTS[0])
    await engine.close()


async def test_a_request_that_waits_too_long_says_who_has_the_device(model) -> None:
    turns = DeviceTurns()
    engine = TransformersEngine(model, turns=turns, request_timeout_s=0.2)
    with turns.take("training step"), pytest.raises(EngineError, match="held by 'training step'"):
        await sample(engine, PROMPTS[0])
    await engine.close()


async def test_trainer_and_engine_take_turns(model) -> None:
    turns = DeviceTurns()
    engine = TransformersEngine(model, turns=turns)
    task = asyncio.create_task(sample(engine, PROMPTS[0], Sampling(max_tokens=300, seed=2)))
    got = threading.Event()

    def train():
        for _ in range(5):
            with turns.take("training step", timeout_s=5):
                pass
        got.set()

    await asyncio.to_thread(train)
    assert got.is_set() and not task.done()
    assert (await task)[-1].finish
    await engine.close()


def test_impossible_limits_are_refused(model) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        TransformersEngine(model, max_batch_size=0)
