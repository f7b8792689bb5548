"""A model without values: what a training pass would keep is counted, and nothing is computed.

torch's meta device runs a model's own code over shapes. So counts hold for every architecture, and
a model of any size takes no memory and a second.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from art_core.base.errors import ConfigError
from art_local.models.load import auto_class, silence_logs
from art_local.training.policy import Policy

META = torch.device("meta")
POINTS = (256, 512, 1024)
"""Lengths at which bytes are counted; at others they follow from these."""
ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
UNCOUNTABLE = (
    ArithmeticError,
    AttributeError,
    ConfigError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a blueprint may raise: a model's own code may trip over shapes without values in any way."""


@attrs.frozen(kw_only=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass: with all activations, and with one
    layer's computed again at a time.
    """

    whole: int
    checkpointed: int


@attrs.frozen(kw_only=True)
class Growth:
    """Bytes as a function of tokens: constant, proportional to them, and to their square."""

    constant: float
    linear: float
    square: float

    @classmethod
    def through(cls, count: Callable[[int], int]) -> Growth:
        """Return the growth of a count, measured at three lengths."""
        n, y0, y1, y2 = POINTS[0], *map(count, POINTS)
        # the lengths are n, 2n and 4n
        square = (y2 - 3 * y1 + 2 * y0) / (6 * n * n)
        linear = (y1 - y0) / n - 3 * n * square
        return cls(constant=y0 - linear * n - square * n * n, linear=linear, square=square)

    def __call__(self, tokens: int) -> int:
        """Return the bytes of so many tokens."""
        return round(self.constant + self.linear * tokens + self.square * tokens * tokens)


class Blueprint:
    """A policy of a config whose tensors have shapes and no values. Raises `UNCOUNTABLE` for an
    architecture whose code asks for values.
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: torch.dtype,
        lora: tuple[int, int] | None,
        merged: bool = True,
    ) -> None:
        config = copy.deepcopy(config)
        loaded_as = torch.float32 if lora is None else dtype
        with silence_logs(), torch.random.fork_rng(devices=[]), META:
            model = auto_class(config).from_config(config, dtype=loaded_as)
        self.policy = Policy(model, dtype=dtype, lora=lora, seed=0, merged=merged)
        casts = dtype if lora is None and dtype != torch.float32 else None
        self._shapes = _Shapes(casts)
        self._found: dict[tuple[int, int], Kept] = {}
        self._growth: tuple[Growth, Growth] | None = None

    @classmethod
    def of(cls, policy: Policy) -> Blueprint:
        """Return the blueprint of a policy that has values."""
        return cls(policy.base.config, dtype=policy.dtype, lora=policy.lora, merged=policy.merged)

    @property
    def model(self) -> Any:
        """The model as transformers makes it, with the adapter's layers in it."""
        return self.policy.base

    def kept(self, rows: int, length: int) -> Kept:
        """Return what a forward pass over `rows` sequences of `length` tokens keeps."""
        if (rows, length) not in self._found:
            whole = self._count(rows, length, checkpointed=False)
            inputs = self._count(rows, length, checkpointed=True)
            # the backward pass holds one layer whole, and about as much again in gradients
            layer = (whole - inputs) // max(1, len(self.policy.checkpointing.layers))
            self._found[rows, length] = Kept(
                whole=whole, checkpointed=min(whole, inputs + 2 * layer)
            )
        return self._found[rows, length]

    def estimated(self, length: int) -> Kept:
        """Return what a pass over one sequence keeps, from the counts at three lengths."""
        if self._growth is None:
            self._growth = (
                Growth.through(lambda points: self.kept(1, points).whole),
                Growth.through(lambda points: self.kept(1, points).checkpointed),
            )
        whole, checkpointed = self._growth
        return Kept(whole=whole(length), checkpointed=checkpointed(length))

    def key_value_bytes(self, length: int) -> int:
        """Return the bytes of keys and values, and of states, of one sequence in an engine that
        computes in the policy's dtype.
        """
        from transformers import DynamicCache

        text, body = self.model.config.get_text_config(), self.policy._body()  # noqa: SLF001
        kinds = set(getattr(text, "layer_types", None) or ())
        # the embedded engine keeps all tokens, also of a sliding window
        cache = DynamicCache(config=text) if kinds - ATTENTIONS else DynamicCache()
        named = inspect.signature(body.forward).parameters
        name = "cache" if "cache" in named else "past_key_values"  # from transformers 5.24 on
        ids_BS = torch.zeros(1, length, dtype=torch.long, device=META)
        with torch.no_grad(), self._shapes:
            body(input_ids=ids_BS, use_cache=True, **{name: cache})
        tensors = [t for layer in cache.layers for t in _tensors(vars(layer))]
        width = self.policy.dtype.itemsize
        return sum(t.numel() * width for t in {id(t): t for t in tensors}.values())

    def _count(self, rows: int, length: int, *, checkpointed: bool) -> int:
        ids_BS = torch.zeros(rows, length, dtype=torch.long, device=META)
        rows_R = torch.arange(rows * length, device=META)
        policy = self.policy
        policy.checkpointing.choose(on=checkpointed)
        with self._shapes, saved_storages(policy) as found:
            policy.logprobs(ids_BS, rows_R, rows_R, chunk_size=512)
        return sum(found.values())


@contextmanager
def saved_storages(policy: Policy) -> Iterator[Mapping[int, int]]:
    """Collect what passes inside the block keep for the backward pass: bytes of each storage,
    without the policy's weights.
    """
    weights = {_place(t) for t in (*policy.model.parameters(), *policy.model.buffers())}
    weights |= {_place(t) for t in policy.serving.values()}
    found: dict[int, int] = {}
    held = []  # a storage's place is its own while the storage lives

    def note(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in weights:
            found[place] = tensor.untyped_storage().nbytes()
            held.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            yield from _tensors(value)


class _Shapes(TorchFunctionMode):
    """Runs a model over shapes as a device would run it over values.

    A question about values, such as whether a mask hides nothing, is answered as for sequences
    without padding. Attention keeps what a fused kernel keeps, and products of experts what a
    grouped product keeps. `casts` is the dtype of autocast, which the meta device lacks.
    """

    def __init__(self, casts: torch.dtype | None) -> None:
        super().__init__()
        self._casts = casts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func in _ANSWERS and args[0].is_meta:
            return _ANSWERS[func]
        if self._casts is not None and func in _CAST_BY_AUTOCAST:
            args = tuple(map(self._cast, args))
        if func is nn.functional.scaled_dot_product_attention:
            return _fused_attention(*args, **options)
        if getattr(func, "__name__", "").endswith("grouped_mm"):
            return args[0] @ args[1][0]
        return func(*args, **options)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self._casts)
        return value


_ANSWERS: Mapping[Any, bool] = {Tensor.__bool__: True, Tensor.__contains__: False}
_CAST_BY_AUTOCAST: frozenset[Callable[..., Any]] = frozenset(
    (
        nn.functional.linear,
        nn.functional.scaled_dot_product_attention,
        torch.matmul,
        torch.bmm,
        torch.addmm,
        Tensor.matmul,
        Tensor.__matmul__,
    )
)


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    return _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-any-return]


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps its inputs, its outputs and one number for each query. It has no
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        B, N, S, _ = query.shape
        out = query.new_empty(B, S, N, value.shape[-1]).transpose(1, 2)
        denominators = query.new_empty(B, N, S, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, denominators)
        return out
