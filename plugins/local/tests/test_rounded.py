"""Sampling with weights of 8 bits: near the model's log-probs, corrected in the loss, and refused
where it is not possible.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import art_core as art
from art_core.endpoint.engine import Sampling
from art_local.engine import TransformersEngine, packed
from art_local.engines import choose
from art_local.models.placement import placement
from art_local.options import LocalOptions


def test_a_rounded_product_is_near_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(s, generator=generator) for s in ((48, 64), (48,), (5, 64)))
    found = packed.int8_product(weight, bias)
    expected = functional.linear(x, weight, bias)
    error = (found(x) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.02
    assert found(x).dtype == x.dtype
    assert torch.equal(found.plus(x, torch.ones(5, 48)), found(x) + 1)
    assert torch.equal(packed.int8_product(torch.zeros(48, 64))(x), torch.zeros(5, 48))


def test_a_torch_without_the_product_is_a_config_error(monkeypatch):
    def missing(self, x):
        raise AttributeError("no such operation")

    monkeypatch.setattr(packed.Int8Product, "__call__", missing)
    with pytest.raises(art.ConfigError, match="does not multiply with 8-bit weights: no such"):
        packed.int8_product(torch.ones(32, 32))


async def test_a_step_learns_from_answers_of_rounded_weights(tiny_directory, tmp_path):
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
    )
    backend = art.backend(
        "local", device="cpu", dtype="float32", engine_weights="int8", progress=False
    )
    await model.register(backend)

    async def rollout(seed):
        messages = [{"role": "user", "content": "a"}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        return art.Trajectory(
            messages_and_choices=[*messages, completion.choices[0]], reward=float(seed % 2)
        )

    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(seed) for seed in range(4))], pbar_desc=None
    )
    result = await model.train(groups, learning_rate=1e-3, mask_truncated=False)
    assert 0 < result.metrics["loss/engine_logprob_diff"] < 0.25
    assert result.metrics["loss/importance_ratio_mean"] != 1.0
    await model.close()
    await backend.close()


def test_models_with_other_layers_are_refused():
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    with pytest.raises(art.ConfigError, match="built as Llama's, and GPT2LMHeadModel"):
        TransformersEngine(AutoModelForCausalLM.from_config(config), int8=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "vllm"}, "is for the embedded engine"),
        ({"deterministic": True}, "computes the rows of a batch together"),
    ],
)
def test_options_that_do_not_fit(options, reason):
    with pytest.raises(art.ConfigError, match=reason):
        choose(LocalOptions(engine_weights="int8", **options), placement("cpu", "float32"))


def test_another_kind_of_weights_is_refused():
    with pytest.raises(art.ConfigError, match="engine_weights 'int4'"):
        LocalOptions(engine_weights="int4")


async def test_the_engine_reports_log_probs_near_the_models(tiny_directory):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_directory, dtype=torch.float32).eval()
    engine = TransformersEngine(model, int8=True)
    assert (engine.state, engine.is_rounded) == ("fused", True)
    prompt = list(range(40, 60))
    sampling = Sampling(max_tokens=16, seed=1)
    tokens = [token async for token in engine.generate(prompt, sampling)]
    ids = torch.tensor([[*prompt, *(token.id for token in tokens)]])
    with torch.no_grad():
        rows = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = rows.gather(1, ids[0, len(prompt) :, None])[:, 0]
    found = torch.tensor([token.logprob for token in tokens])
    assert 0 < (found - expected).abs().mean() < 0.1
    await engine.close()
