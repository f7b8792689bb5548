"""Chunked log-probs against the full log-softmax that they stand for."""

from __future__ import annotations

import pytest
import torch

from art_local.training.logprobs import OutputHead, token_logprobs

R, H, V = 37, 16, 101


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(R, H, generator=generator, dtype=dtype)
    weight = torch.randn(V, H, generator=generator, dtype=dtype)
    bias = torch.randn(V, generator=generator, dtype=dtype)
    targets = torch.randint(0, V, (R,), generator=generator)
    upstream = torch.randn(R, generator=generator)
    return hidden, weight, bias, targets, upstream


def full(hidden, weight, bias, targets, scale, softcap):
    logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = logits.log_softmax(1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(1)


@pytest.mark.parametrize("chunk_size", [1, 8, 512])
@pytest.mark.parametrize("head_is_trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(
    ("has_bias", "scale", "softcap"),
    [(False, 1.0, None), (True, 0.25, None), (True, 1.0, 5.0), (False, 2.0, 30.0)],
)
def test_chunked_log_probs_equal_the_full_log_softmax_and_so_do_their_gradients(
    chunk_size, head_is_trained, has_bias, scale, softcap
):
    hidden, weight, bias, targets, upstream = inputs()
    leaves = [hidden, *([weight, bias] if head_is_trained else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    used_bias = bias if has_bias else None
    wanted, wanted_entropy = full(hidden, weight, used_bias, targets, scale, softcap)
    wanted_gradients = torch.autograd.grad(wanted @ upstream, leaves, allow_unused=True)
    head = OutputHead(weight_VH=weight, bias_V=used_bias, scale=scale, softcap=softcap)
    found, entropy = token_logprobs(hidden, head, targets, chunk_size=chunk_size)
    gradients = torch.autograd.grad(found @ upstream, leaves, allow_unused=True)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(entropy, wanted_entropy)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 8, 512])
@pytest.mark.parametrize("head_is_trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize(
    ("has_bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.25, None), (True, 2.0, 5.0)]
)
def test_the_gradient_of_log_probs_and_entropies_is_that_of_the_full_softmax(
    chunk_size, head_is_trained, has_bias, scale, softcap
):
    hidden, weight, bias, targets, upstream = inputs()
    of_entropies = torch.linspace(-1, 2, R)
    leaves = [hidden, *([weight, bias] if head_is_trained else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    used_bias = bias if has_bias else None
    head = OutputHead(weight_VH=weight, bias_V=used_bias, scale=scale, softcap=softcap)

    def gradients(found, entropies):
        total = found @ upstream + entropies @ of_entropies
        return torch.autograd.grad(total, leaves, allow_unused=True)

    wanted = gradients(*full(hidden, weight, used_bias, targets, scale, softcap))
    made = gradients(
        *token_logprobs(hidden, head, targets, chunk_size=chunk_size, entropy_gradient=True)
    )
    for gradient, wanted_gradient in zip(made, wanted, strict=True):
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-5)


def test_an_entropy_has_no_gradient_unless_it_is_asked_for():
    hidden, weight, _, targets, _ = inputs()
    hidden.requires_grad_()
    head = OutputHead(weight_VH=weight)
    assert not token_logprobs(hidden, head, targets)[1].requires_grad
    assert token_logprobs(hidden, head, targets, entropy_gradient=True)[1].requires_grad


def test_log_probs_of_bf16_hidden_states_are_fp32_and_close():
    hidden, weight, _, targets, _ = inputs(torch.bfloat16)
    head = OutputHead(weight_VH=weight)
    found, _ = token_logprobs(hidden, head, targets, chunk_size=8)
    wanted, _ = full(hidden.float(), weight.float(), None, targets, 1.0, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_no_tensor_of_rows_times_vocabulary_is_kept_for_the_backward_pass(entropy_gradient):
    hidden, weight, _, targets, _ = inputs()
    hidden.requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.numel()), t)[1], lambda t: t
    ):
        head = OutputHead(weight_VH=weight)
        token_logprobs(hidden, head, targets, chunk_size=8, entropy_gradient=entropy_gradient)
    assert max(kept) <= R * H
