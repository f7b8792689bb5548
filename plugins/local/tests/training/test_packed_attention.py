"""Attention of packed rows against a dense mask over the same row."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from art_local.training import packed_attention as module
from art_local.training.layout import Shape, layout_of
from art_local.training.packed_attention import packed_attention

PACKS = {
    "one group": [(7, [4, 4, 4])],
    "ragged segments": [(9, [3, 17, 1, 8])],
    "two groups and a row alone": [(5, [2, 6]), (0, [11]), (3, [4, 4, 5])],
    "an answer that is the prefix of another": [(6, [0, 5])],
    "equal sequences": [(8, [0, 0])],
    "rows without anything in common": [(0, [5]), (0, [5]), (0, [3])],
    "a long prefix and a long segment": [(40, [4, 33, 34]), (2, [3])],
}


def layout(name):
    return layout_of(Shape(prefix=p, segments=tuple(s)) for p, s in PACKS[name])


def tensors(size, query_heads, key_heads, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, size, 16) for heads in (query_heads, key_heads, key_heads)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def dense(query, key, value, mask):
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)


@pytest.mark.parametrize("short", [384, 16], ids=["products", "fused kernel"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("name", PACKS)
def test_outputs_and_gradients_equal_those_of_a_dense_mask(name, heads, short, monkeypatch):
    monkeypatch.setattr(module, "MAX_SHORT", short)
    packed = layout(name)
    size = len(packed.positions_S)
    ours, theirs = tensors(size, *heads), tensors(size, *heads)
    found = packed_attention(*ours, packed, 0.3)
    wanted = dense(*theirs, packed.mask_SS)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    found.backward(upstream)
    wanted.backward(upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_right_by_finite_differences():
    packed = layout("two groups and a row alone")
    inputs = tensors(len(packed.positions_S), 2, 1, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: packed_attention(*x, packed, 0.3), inputs, fast_mode=True
    )


def test_bf16_is_as_near_to_fp32_as_torchs_own():
    packed = layout("ragged segments")
    size = len(packed.positions_S)
    exact, rounded, theirs = (
        tensors(size, 6, 2, dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    wanted = dense(*exact, packed.mask_SS)
    outputs = [packed_attention(*rounded, packed, 0.3), dense(*theirs, packed.mask_SS)]
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    wanted.backward(upstream)
    for output in outputs:
        assert output.dtype == torch.bfloat16
        assert float((output - wanted).detach().abs().max()) < 0.03
        output.backward(upstream)
    for tensor, ours, other in zip(exact, rounded, theirs, strict=True):
        errors = [float((x.grad - tensor.grad).abs().mean()) for x in (ours, other)]
        assert errors[0] < 2 * errors[1] + 1e-3


def test_a_token_sees_its_prefix_and_its_own_segment_alone():
    packed = layout_of([Shape(prefix=2, segments=(2, 2))])
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert packed.mask_SS.int().tolist() == wanted
    assert packed.positions_S.tolist() == [0, 1, 2, 3, 2, 3]


def test_nothing_of_the_size_of_the_row_squared_is_kept_for_the_backward_pass():
    packed = layout_of([Shape(prefix=2000, segments=(50,) * 20)])
    query, key, value = tensors(3000, 2, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.append(x.numel()), x)[1], lambda x: x
    ):
        packed_attention(query, key, value, packed, 0.3)
    # of the segments 20 x 2 x 50 x 50 weights, of the prefix none
    assert max(kept) == 20 * 2 * 50 * 50
