"""Log-probs are a function of the tokens: no dropout, no router noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_core.base.errors import ConfigError
from art_local.training.noise import without_noise
from art_local.training.policy import Policy

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OPT = {
    "vocab_size": 97, "hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 48,
    "dropout": 0.3, "layerdrop": 0.3,
}  # fmt: skip
MODELS = {
    "dropout of attention": ("LlamaConfig", SIZES | {"attention_dropout": 0.3}),
    "dropout of layers": ("OPTConfig", OPT),
    "router": ("PhimoeConfig", SIZES | {"num_local_experts": 4, "input_jitter_noise": 0.1}),
}
IDS = torch.arange(3, 43)[None]


def made(kind):
    import transformers

    name, options = MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def scored(policy):
    rows = torch.arange(39)
    return policy.logprobs(IDS, rows, IDS[0, 1:], chunk_size=64)[0]


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("dropout of attention", (4, 8)),
        ("dropout of layers", (4, 8)),
        ("dropout of layers", None),
        ("router", None),
    ],
)
def test_the_trainer_scores_as_the_model_in_eval_mode_and_learns(kind, lora):
    with torch.no_grad():
        logits = made(kind).eval()(input_ids=IDS, use_cache=False).logits[0, :-1]
    wanted = logits.log_softmax(-1).gather(1, IDS[0, 1:, None])[:, 0]
    policy = Policy(made(kind), dtype=torch.float32, lora=lora, seed=0)
    found = scored(policy)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    found.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trained().values())


def test_layers_in_training_mode_drop_nothing():
    model = without_noise(made("dropout of attention"), training_mode=True)
    model.append = nn.Dropout(0.5)
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        found, again = (without_noise(model, training_mode=True)(input_ids=IDS) for _ in "ab")
    assert torch.equal(found.logits, again.logits)
    assert model.append.p == 0.0
    assert model.config.attention_dropout == 0.3


def test_a_model_that_draws_in_eval_mode_is_refused():
    model = made("dropout of attention")
    model.lm_head.register_forward_hook(lambda _, __, out: out + torch.randn_like(out))
    with pytest.raises(ConfigError, match="LlamaForCausalLM are not a function of its tokens"):
        Policy(model, dtype=torch.float32, lora=(4, 8), seed=0)
