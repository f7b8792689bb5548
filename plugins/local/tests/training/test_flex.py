"""FlexAttention over packed rows: its mask, and its outputs without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from art_local.training import flex
from art_local.training.layout import Shape, layout_of

LAYOUTS = {
    "one group": [(7, [4, 4, 4])],
    "two groups and a row alone": [(130, [200, 6]), (0, [11]), (3, [4, 140, 5])],
}


def layout(name):
    return layout_of(Shape(prefix=p, segments=tuple(s)) for p, s in LAYOUTS[name])


@pytest.mark.parametrize("name", LAYOUTS)
def test_its_mask_is_the_dense_mask(name):
    from torch.nn.attention.flex_attention import create_mask

    packed = layout(name)
    size = len(packed.positions_S)
    mask = create_mask(flex.mask_mod(packed), None, None, size, size, device="cpu")
    assert torch.equal(mask[0, 0], packed.mask_SS)


def test_blocks_that_no_token_attends_to_are_left_out():
    packed = layout_of([Shape(prefix=128, segments=(128,) * 6)])
    mask = flex.block_mask(packed, compiled=False)
    # of 7 x 7 blocks: 7 on the diagonal, and 6 onto the prefix
    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) == 13
    assert flex.block_mask(packed, compiled=False) is mask


def test_its_mask_is_compiled_by_the_way_that_torch_keeps(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(options) or f)
    flex._compiled.cache_clear()
    packed = layout("one group")
    mask = flex.block_mask(packed, compiled=True)  # a warning would be an error
    flex._compiled.cache_clear()
    assert compiled == [{"dynamic": True}]
    assert torch.equal(
        mask.to_dense(), flex.block_mask(layout("one group"), compiled=False).to_dense()
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_equal_those_of_a_dense_mask(name):
    packed = layout(name)
    size = len(packed.positions_S)
    query, key, value = (torch.randn(1, heads, size, 16) for heads in (4, 2, 2))
    found = flex.flex_packed(query, key, value, packed, 0.3, compiled=False)
    wanted = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=packed.mask_SS, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_a_cpu_has_no_compiled_kernel():
    assert not flex.can_attend(torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8, 16))


@pytest.mark.parametrize(
    ("capability", "width", "told"),
    [((9, 0), 128, None), ((8, 9), 128, {"fwd_num_stages": 2}), ((8, 9), 256, None)],
)
def test_a_gpu_with_little_shared_memory_is_given_a_kernel_that_fits(
    capability, width, told, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert flex.kernel_options(torch.zeros(1, 1, 1, width, dtype=torch.bfloat16)) == told


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Triton, about its own settings
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.bfloat16, 128)]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_compiled_kernel_gives_a_dense_masks_outputs_and_gradients(name, dtype, width):
    packed = layout(name).to(torch.device("cuda"))
    size = len(packed.positions_S)
    ours = [
        torch.randn(1, heads, size, width, device="cuda", dtype=dtype, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    theirs = [x.detach().float().requires_grad_() for x in ours]
    assert flex.can_attend(ours[0], ours[2])
    found = flex.flex_packed(*ours, packed, 0.125)
    wanted = functional.scaled_dot_product_attention(
        *theirs, attn_mask=packed.mask_SS, scale=0.125, enable_gqa=True
    ).transpose(1, 2)
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found.float(), wanted, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(wanted)
    found.backward(upstream.to(dtype))
    wanted.backward(upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.float(), other.grad, atol=5e-2, rtol=5e-2)
