"""Models whose rotary positions depend on length: log-probs depend on the sequence only."""

from __future__ import annotations

import asyncio
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from art_core.endpoint.engine import Sampling
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.engine import TransformersEngine
from art_local.models.load import RotaryLengths, rotary_lengths
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

ORIGINAL = 24
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LONGROPE = Phi3Config(
    **SIZES,
    max_position_embeddings=96,
    original_max_position_embeddings=ORIGINAL,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
        "long_factor": [8.0] * 8, "original_max_position_embeddings": ORIGINAL,
    },
)  # fmt: skip
DYNAMIC = LlamaConfig(
    **SIZES,
    max_position_embeddings=ORIGINAL,
    rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
)


def made(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(8)
    return model


def logprobs(config, ids):
    """Log-probs of the tokens after the first, by a fresh model that sees nothing else."""
    with torch.no_grad():
        logits = made(config)(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def tokens(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 64, (length,), generator=generator).tolist()


def row(config, ids):
    trainable = tuple(t >= 4 for t in range(len(ids)))
    own = [0.0, *logprobs(config, ids).tolist()]
    return TokenSequence(
        token_ids=tuple(ids),
        trainable=trainable,
        logprobs=tuple(p if t else 0.0 for p, t in zip(own, trainable, strict=True)),
        advantage=1.0,
        weight=1 / (len(ids) - 4),
    )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("config", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_a_step_has_the_logprobs_of_each_sequence_by_itself(config, packing):
    prompt = tokens(12)
    lengths = (4, ORIGINAL - 12, ORIGINAL - 11, 40, 60, 30)
    rows = [row(config, prompt + tokens(n, seed=n)) for n in lengths]
    policy = Policy(made(config), dtype=torch.float32, lora=None, seed=0)

    metrics = Trainer(policy, progress=False).step(
        rows, TrainConfig(learning_rate=1e-9, packing=packing)
    )

    assert metrics["loss/engine_logprob_diff"] < 1e-4
    assert policy.packs is (True if packing else None)


def test_the_reference_sees_the_difference():
    long = tokens(40)
    together = torch.tensor([tokens(20) + [0] * 20, long])
    with torch.no_grad():
        logits = made(LONGROPE)(input_ids=together, use_cache=False).logits[0, :19]
    found = logits.log_softmax(-1).gather(1, together[0, 1:20, None])[:, 0]
    assert (found - logprobs(LONGROPE, tokens(20))).abs().mean() > 0.1


@pytest.mark.parametrize("length", [12, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 40])
def test_the_engine_samples_from_each_sequence_by_itself(length, caplog):
    async def sampled():
        engine = TransformersEngine(made(LONGROPE))

        async def ask(ids):
            asked = engine.generate(ids, Sampling(max_tokens=16, seed=1))
            return [token async for token in asked]

        found = await asyncio.gather(ask(tokens(length)), ask(tokens(50)), ask(tokens(9)))
        await engine.close()
        return found[0]

    with caplog.at_level(logging.WARNING, logger="art_local"):
        found = asyncio.run(sampled())

    whole = tokens(length) + [token.id for token in found]
    wanted = logprobs(LONGROPE, whole)[length - 1 :]
    assert torch.allclose(wanted, torch.tensor([t.logprob for t in found]), atol=1e-4)
    assert found[-1].finish == "length"
    assert len(found) == (min(16, ORIGINAL - length) if length < ORIGINAL else 16)
    assert caplog.text.count("other rotary positions") == 1


def test_lengths_with_equal_factors_are_one_group():
    lengths = RotaryLengths(switches=(8,), dynamic=10)
    assert lengths.groups([3, 8, 9, 10, 12, 12, 5]) == [[0, 1, 6], [2, 3], [4, 5]]
    assert [lengths.longest(n) for n in (3, 9, 12)] == [8, 10, 12]
    assert [lengths.shortest(n) for n in (8, 9, 12)] == [1, 9, 12]
    assert RotaryLengths().groups([3, 900]) == [[0, 1]]
    assert RotaryLengths().longest(900) is None


def test_lengths_are_read_from_rope_parameters_of_each_kind_of_layer():
    config = LlamaConfig(**SIZES, max_position_embeddings=64)
    assert rotary_lengths(config) == RotaryLengths()
    assert rotary_lengths(LONGROPE) == RotaryLengths(switches=(ORIGINAL,))
    config.rope_parameters = {
        "full_attention": dict(LONGROPE.rope_parameters),
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert rotary_lengths(config) == RotaryLengths(switches=(ORIGINAL,))
