"""Short causal attention against torch's own."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch.nn import functional

from art_local.training import attention
from art_local.training.attention import short_causal_attention


def tensors(query_heads, key_heads, length, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, query_heads, length, 16), (2, key_heads, length, 16), (2, key_heads, length, 8)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_outputs_and_gradients_equal_those_of_torch(heads, length):
    ours, theirs = tensors(*heads, length), tensors(*heads, length)
    found = short_causal_attention(*ours, 0.3)
    wanted = functional.scaled_dot_product_attention(
        *theirs, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    found.backward(upstream)
    wanted.backward(upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_token_never_sees_what_comes_after_it():
    query, key, value = tensors(4, 2, 9)
    before = short_causal_attention(query, key, value, 0.3)
    with torch.no_grad():
        key[:, :, 5:] += 1
        value[:, :, 5:] += 1
    after = short_causal_attention(query, key, value, 0.3)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:], after[:, :, 5:])


def test_a_policy_uses_it_for_short_rows_and_torchs_for_long_ones(make_policy, monkeypatch):
    used = []

    def counting(*inputs):
        used.append(inputs[0].shape[2])
        return short_causal_attention(*inputs)

    monkeypatch.setattr(attention, "short_causal_attention", counting)
    monkeypatch.setattr(attention, "MAX_SHORT", 20)
    policy = make_policy()
    used.clear()
    for length in (20, 21):
        policy.model(input_ids=torch.arange(length)[None])
    assert set(used) == {20}


@pytest.mark.parametrize("option", attention.SPECIAL)
def test_what_it_cannot_do_is_left_to_torchs(option, monkeypatch):
    used = []
    monkeypatch.setattr(attention, "short_causal_attention", lambda *_: used.append(1) or _[0])
    module, (query, key, value) = torch.nn.Identity(), tensors(2, 2, 5)
    attention._attention(module, query, key, value, None, **{option: None})
    assert used == [1]
    with suppress(ValueError):  # torch's refuses a soft cap
        attention._attention(module, query, key, value, None, **{option: torch.zeros(1)})
    assert used == [1]


def test_both_attentions_give_a_policy_the_same_log_probs(make_policy, monkeypatch):
    ids = torch.arange(60).reshape(2, 30)
    rows, targets = torch.arange(29), torch.arange(1, 30)
    policy = make_policy()
    short, _ = policy.logprobs(ids, rows, targets, chunk_size=64)
    monkeypatch.setattr(attention, "MAX_SHORT", 0)
    long, _ = policy.logprobs(ids, rows, targets, chunk_size=64)
    torch.testing.assert_close(short, long)


def test_sliding_windows_keep_their_mask():
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, use_sliding_window=True,
        sliding_window=4, max_window_layers=1, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    assert "sliding_attention" in config.layer_types
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        attention.use_training_attention(model)
        assert model.config._attn_implementation == attention.NAME
        torch.testing.assert_close(model(input_ids=ids).logits, wanted)
