"""The layers of a decoder with rotary positions and a gated MLP, as Llama, Mistral, Qwen and SmolLM
have them, without their modules: few and large products, and little Python for each token.

Tokens stand in one row T, whichever sequences they belong to; only attention keeps them apart.
Shapes: T tokens, H hidden size, Q query heads, K heads of keys and values, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_local.engine.packed import Product, product

Attend = Callable[[int, Tensor], Tensor]
"""Attention of a layer: its number, and queries, keys and values [T, Q + 2K, D] in this order;
returns [T, Q * D].
"""

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Other architectures with the same parts may compute something else with them, as Ministral 3 does
from its 16,384th token on, which a trial of a short text does not show.
"""
ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
HEAD_NORMS = frozenset({"q_norm", "k_norm"})
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
MODEL = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})


@attrs.frozen(eq=False)
class Norm:
    """Root mean square normalisation (Zhang and Sennrich, 1910.07467)."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if x.dtype != torch.float32:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        # the same in fewer operations
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / x.shape[-1]).add_(self.epsilon).rsqrt_()
        return (x * scale).mul_(self.weight)


@attrs.frozen(eq=False, kw_only=True)
class Layer:
    """One layer's weights. The products for queries, keys and values are one, and so are those for
    the MLP's gate and its other input.
    """

    attention_norm: Norm
    query_key_value: Product
    head_norms: tuple[Norm, Norm] | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@attrs.frozen(eq=False, kw_only=True)
class Decoder:
    """All weights of a model.

    `packed` has each product with the weights that it was made of, by their identity. `weights`
    are those that may be changed in place, which `versions` count.
    """

    embedding: Tensor
    layers: Sequence[Layer]
    norm: Norm
    head: Product
    query_heads: int
    key_heads: int
    head_size: int
    scale: float
    activation: Callable[[Tensor], Tensor]
    packed: Mapping[tuple[int, ...], tuple[tuple[Tensor, ...], Product]]
    weights: Sequence[Tensor]
    versions: Sequence[int]

    @property
    def is_current(self) -> bool:
        """Whether no weight was changed in place since the products were made."""
        return _versions(self.weights) == self.versions

    def hidden(self, ids_T: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attend) -> Tensor:
        """Return the hidden states [T, H] before the last normalisation.

        `sin_TD` has its first half negated, for `rotate_`.
        """
        x_TH = functional.embedding(ids_T, self.embedding)
        cos, sin = cos_TD[:, None], sin_TD[:, None]
        rotary = self.query_heads + self.key_heads
        parts = slice(self.query_heads), slice(self.query_heads, rotary)
        for number, layer in enumerate(self.layers):
            joint = layer.query_key_value(layer.attention_norm(x_TH))
            joint = joint.view(len(ids_T), -1, self.head_size)
            if layer.head_norms is not None:
                for norm, heads in zip(layer.head_norms, parts, strict=True):
                    joint[:, heads] = norm(joint[:, heads])
            rotate_(joint[:, :rotary], cos, sin)
            attended = attend(number, joint)
            x_TH = layer.output.plus(attended, x_TH)
            gate, up = layer.gate_up(layer.mlp_norm(x_TH)).chunk(2, dim=-1)
            x_TH = layer.down.plus(self.activation(gate).mul_(up), x_TH)
        return x_TH

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits [N, V] of hidden states."""
        return self.head(self.norm(hidden_NH))


def rotate_(x_THD: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn heads to their rotary positions (Su et al., 2104.09864), in place; the first half of
    `sin` is negated, so that halves that change places need no sign.
    """
    swapped = x_THD.roll(x_THD.shape[-1] // 2, -1)
    torch.addcmul(x_THD * cos, swapped, sin, out=x_THD)


def is_decoder(module: Any) -> bool:
    """Return whether a causal language model on a CPU has exactly the parts that `Decoder`
    computes.

    What its parts do is not known from their names: a trial compares the log-probs.
    """
    model = getattr(module, "model", None)
    if module.config.model_type not in MODEL_TYPES:
        return False
    if model is None or _parts(module) != {"model", "lm_head"} or _parts(model) != MODEL:
        return False
    if any(parameter.device.type != "cpu" for parameter in module.parameters()):
        return False
    if any(map(_is_changed, module.modules())):
        return False
    layers = list(model.layers)
    return all(_parts(layer) == LAYER and _is_layer(layer) for layer in layers)


def _is_layer(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    linears = [
        getattr(part, name, None)
        for part, names in ((attention, ATTENTION), (mlp, MLP))
        for name in names
    ]
    return (
        _parts(attention) in (ATTENTION, ATTENTION | HEAD_NORMS)
        and _parts(mlp) - {"act_fn"} == MLP
        and all(isinstance(linear, nn.Linear) for linear in linears)
        and isinstance(getattr(attention, "head_dim", None), int)
    )


def packed_bytes(module: Any) -> int:
    """Return the memory that a decoder's products take."""
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return sum(part.weight.numel() * part.weight.element_size() for part in linears)


def decoder_of(
    module: Any, known: Sequence[Decoder] = (), make: Callable[..., Product] = product
) -> Decoder:
    """Return the decoder of a module with its current weights. Products whose weights are those of
    a known decoder are shared with it. `make` makes those of the layers.
    """
    packed: dict[tuple[int, ...], tuple[tuple[Tensor, ...], Product]] = {}

    def joined(*linears: nn.Linear, make: Callable[..., Product] = make) -> Product:
        weights = tuple(linear.weight for linear in linears)
        key = tuple(map(id, weights))
        same = next((other.packed[key] for other in known if key in other.packed), None)
        packed[key] = same or (weights, _joined(linears, make))
        return packed[key][1]

    layers = [_layer(layer, joined) for layer in module.model.layers]
    head = joined(module.lm_head, make=product)
    # tensors of inference mode don't count their changes
    every = [weight for weights, _ in packed.values() for weight in weights]
    weights = [weight for weight in every if not weight.is_inference()]
    first = module.model.layers[0]
    size = first.self_attn.head_dim
    return Decoder(
        embedding=module.model.embed_tokens.weight,
        layers=layers,
        norm=_norm(module.model.norm),
        head=head,
        query_heads=first.self_attn.q_proj.out_features // size,
        key_heads=first.self_attn.k_proj.out_features // size,
        head_size=size,
        scale=getattr(first.self_attn, "scaling", size**-0.5),
        activation=first.mlp.act_fn,
        packed=packed,
        weights=weights,
        versions=_versions(weights),
    )


def _joined(linears: Sequence[nn.Linear], make: Callable[..., Product]) -> Product:
    weights: list[Tensor] = [linear.weight for linear in linears]
    bias_O = None
    if any(linear.bias is not None for linear in linears):
        bias_O = torch.cat([_bias(linear) for linear in linears])
    return make(torch.cat(weights) if len(weights) > 1 else weights[0], bias_O)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _versions(weights: Sequence[Tensor]) -> list[int]:
    return [weight._version for weight in weights]  # noqa: SLF001


def _layer(layer: Any, joined: Callable[..., Product]) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return Layer(
        attention_norm=_norm(layer.input_layernorm),
        query_key_value=joined(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=(_norm(attention.q_norm), _norm(attention.k_norm)) if normed else None,
        output=joined(attention.o_proj),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=joined(mlp.gate_proj, mlp.up_proj),
        down=joined(mlp.down_proj),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, getattr(module, "variance_epsilon", None) or module.eps)


def _is_changed(module: nn.Module) -> bool:
    """Return whether something else than a module's class decides what it computes."""
    hooks = module._forward_pre_hooks or module._forward_hooks  # noqa: SLF001
    return bool(hooks) or "forward" in vars(module)


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
