"""Products by oneDNN: the numbers and gradients of torch's own linear, and where they are used."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from art_local.models import products
from art_local.models.load import sharing_parameters
from art_local.models.products import FastLinear, linear, product, use_fast_products

pytestmark = pytest.mark.skipif(
    products._onednn() is None, reason="this torch has no oneDNN product"
)
ROWS, INPUTS, OUTPUTS = 48, 200, 256


@pytest.fixture
def used(monkeypatch):
    """The shapes of the weights that oneDNN multiplied by."""
    shapes, onednn = [], products._onednn()

    def counted(x, weight, bias):
        shapes.append(tuple(weight.shape))
        return onednn(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", lambda: counted)
    return shapes


def drawn(*shape, seed=0, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **options)


def results(function, x, weight, bias, grad):
    inputs = [
        None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (x, weight, bias)
    ]
    output = function(*inputs)
    output.backward(grad)
    return [output, *(None if t is None else t.grad for t in inputs)]


def leaf(tensor):
    return tensor.requires_grad_(requires_grad=True)


@pytest.mark.parametrize(
    "x",
    [
        drawn(ROWS, INPUTS),
        drawn(4, ROWS, INPUTS),
        drawn(INPUTS, ROWS).t(),
        drawn(ROWS, 4, INPUTS).transpose(0, 1),
        drawn(ROWS, 2 * INPUTS)[:, ::2],
        drawn(1, INPUTS).expand(ROWS, INPUTS),
    ],
    ids=["matrix", "batch", "transposed", "batch of columns", "every second", "one row"],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_outputs_and_gradients_are_those_of_torchs_linear(used, x, with_bias):
    weight = leaf(drawn(OUTPUTS, INPUTS, seed=1))
    bias = leaf(drawn(OUTPUTS, seed=2)) if with_bias else None
    grad = drawn(*x.shape[:-1], OUTPUTS, seed=3)
    ours = results(linear, leaf(x), weight, bias, grad)
    theirs = results(nn.functional.linear, leaf(x), weight, bias, grad)
    assert len(used) == 3
    for found, expected in zip(ours, theirs, strict=True):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-4)


def test_a_gradient_that_is_one_number_everywhere_is_multiplied_right(used):
    x, weight = leaf(drawn(ROWS, INPUTS)), leaf(drawn(OUTPUTS, INPUTS, seed=1))
    linear(x, weight).sum().backward()
    expected = weight.detach().sum(0).expand(ROWS, -1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
    assert len(used) == 3


def test_a_frozen_weight_gets_no_product_of_its_own(used):
    x, weight = leaf(drawn(ROWS, INPUTS)), drawn(OUTPUTS, INPUTS, seed=1)
    linear(x, weight).sum().backward()
    assert used == [(OUTPUTS, INPUTS), (INPUTS, OUTPUTS)]
    assert weight.grad is None


def test_inputs_that_need_no_gradient_get_none(used):
    x, weight = drawn(ROWS, INPUTS), leaf(drawn(OUTPUTS, INPUTS, seed=1))
    linear(x, weight).sum().backward()
    assert used == [(OUTPUTS, INPUTS), (INPUTS, ROWS)]
    assert x.grad is None
    assert not linear(x, weight.detach()).requires_grad


def test_an_input_that_changed_before_the_backward_pass_is_an_error(used):
    x, weight = drawn(ROWS, INPUTS), leaf(drawn(OUTPUTS, INPUTS, seed=1))
    output = linear(x, weight)
    x.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        output.sum().backward()
    assert used


@pytest.mark.parametrize(
    "make",
    [
        lambda: (drawn(0, INPUTS), drawn(OUTPUTS, INPUTS)),
        lambda: (drawn(3, INPUTS), drawn(5, INPUTS)),
        lambda: (drawn(ROWS, 0), drawn(OUTPUTS, 0)),
        lambda: (drawn(ROWS, INPUTS).double(), drawn(OUTPUTS, INPUTS).double()),
        lambda: (drawn(ROWS, INPUTS).bfloat16(), drawn(OUTPUTS, INPUTS).bfloat16()),
        lambda: (drawn(ROWS, INPUTS).to("meta"), drawn(OUTPUTS, INPUTS).to("meta")),
    ],
    ids=["no rows", "small", "no inputs", "float64", "bfloat16", "meta"],
)
def test_torchs_own_product_is_used_for_others(used, make):
    x, weight = make()
    for found in (linear(x, weight), product(x, weight)):
        expected = nn.functional.linear(x, weight)
        assert (found.shape, found.dtype, found.device) == (
            expected.shape,
            expected.dtype,
            expected.device,
        )
        assert found.is_meta or torch.equal(found, expected)
    assert used == []


def test_double_precision_passes_torchs_check_of_gradients():
    inputs = [leaf(drawn(*shape, dtype=torch.float64)) for shape in ((4, 3), (2, 3), (2,))]
    assert torch.autograd.gradcheck(linear, inputs)


def test_autocast_still_chooses_the_dtype(used):
    x, weight = drawn(ROWS, INPUTS), leaf(drawn(OUTPUTS, INPUTS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert used == []


@pytest.mark.parametrize("op", ["missing", "another signature", "wrong"])
def test_a_torch_without_this_product_uses_its_own_and_says_so_once(monkeypatch, caplog, op):
    class Library:
        if op == "another signature":
            _linear_pointwise = staticmethod(lambda _x, _weight: None)
        elif op == "wrong":
            _linear_pointwise = staticmethod(lambda x, w, *_: x @ w.t())

    monkeypatch.setattr(torch.ops, "mkldnn", Library, raising=False)
    monkeypatch.setattr(products, "_onednn", products.functools.cache(products._onednn.__wrapped__))
    x, weight = drawn(ROWS, INPUTS), drawn(OUTPUTS, INPUTS)
    with caplog.at_level(logging.INFO, "art_local"):
        for _ in range(3):
            assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    assert len([r for r in caplog.records if "oneDNN" in r.message]) == 1


def test_equal_shapes_give_equal_bits(used):
    def values():
        x, weight = leaf(drawn(4, ROWS, INPUTS)), leaf(drawn(OUTPUTS, INPUTS, seed=1))
        return results(linear, x, weight, leaf(drawn(OUTPUTS, seed=2)), drawn(4, ROWS, OUTPUTS))

    one, other = values(), values()
    assert used
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Special(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_a_module_keeps_its_names_and_parameters_and_only_plain_layers_change(used):
    module = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.ReLU(), Special(OUTPUTS, 7))
    x = drawn(ROWS, INPUTS)
    expected, names = module(x), list(module.state_dict())
    parameters = list(module.parameters())
    use_fast_products(module)
    use_fast_products(module)
    assert [type(layer) for layer in module] == [FastLinear, nn.ReLU, Special]
    assert list(module.state_dict()) == names
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert used == [(OUTPUTS, INPUTS)]


def test_copies_of_a_structure_compute_alike(used):
    module = nn.Sequential(nn.Linear(INPUTS, OUTPUTS))
    use_fast_products(module)
    shared, copied = sharing_parameters(module), copy.deepcopy(module)
    assert shared[0].weight is module[0].weight
    x = drawn(ROWS, INPUTS)
    assert torch.equal(shared(x), module(x))
    assert torch.equal(copied(x), module(x))
    assert len(used) == 4
