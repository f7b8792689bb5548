"""A policy whose weights are split over ranks by torch's FSDP2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from art_core.base.errors import ConfigError
from art_local.distributed.ranks import Ranks
from art_local.models.load import load_model, model_without_values
from art_local.models.placement import placement
from art_local.training.batches import Allowed
from art_local.training.checkpointing import decoder_layers
from art_local.training.layout import Layout
from art_local.training.policy import Kept, Policy


class ShardedPolicy(Policy):
    """A LoRA policy of which each rank holds one part: base frozen, adapter trained.

    Rank 0 loads the base model into its host's memory and sends it layer by layer; no device ever
    holds more than its part and the layers at work. The forward pass runs on W, A and B apart, so
    that no merged weights have to be kept. All ranks call the same methods at the same time.
    """

    def __init__(
        self, directory: Path, ranks: Ranks, *, dtype: torch.dtype, **options: Any
    ) -> None:
        self.ranks = ranks
        self._entry: Any = None
        if ranks.first:
            model = load_model(directory, placement("cpu", "float32"), dtype)
        else:
            model = model_without_values(directory, dtype)
        super().__init__(model, dtype=dtype, merged=False, **options)
        self._shard()
        self.local = {name: nn.Parameter(_local(p)) for name, p in self._trained()}

    def _shard(self) -> None:
        precision = MixedPrecisionPolicy(cast_forward_inputs=False)
        if self.dtype == torch.bfloat16:
            precision = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        options: dict[str, Any] = {"mesh": self.ranks.mesh, "mp_policy": precision}
        layers = list(decoder_layers(self._body()))
        _check_same(self.base, self.ranks)
        for layer in layers:
            _place(layer, self.ranks)
            fully_shard(layer, **options)
        _place(self.base, self.ranks)
        # a method of the base, for which FSDP2 gathers what stands outside the layers
        self.base.art_hidden = self._body().__call__
        fully_shard(self.base, reshard_after_forward=False, **options)
        register_fsdp_forward_method(self.base, "art_hidden")
        self._entry, self.device = self.base.art_hidden, self.ranks.device
        self._use_head()

    def _body(self) -> Any:
        return self._entry or super()._body()

    def _use_head(self) -> None:
        """Read the output head's parameters anew: FSDP2 puts others in their place."""
        layer = self.base.get_output_embeddings()
        self.head = attrs.evolve(
            self.head, weight_VH=layer.weight, bias_V=getattr(layer, "bias", None)
        )

    def _hidden(self, ids_BS: Tensor, rows_R: Tensor, options: Mapping[str, Any]) -> Tensor:
        hidden_RH = super()._hidden(ids_BS, rows_R, options)
        # whole until the backward pass has ended
        self._use_head()
        return hidden_RH

    def logprobs(
        self,
        ids_BS: Tensor,
        rows_R: Tensor,
        targets_R: Tensor,
        *,
        chunk_size: int,
        layout: Layout | None = None,
        entropy_gradient: bool = False,
        allowed: Allowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what a whole policy returns for this rank's rows; they may differ by rank."""
        found = super().logprobs(
            ids_BS,
            rows_R,
            targets_R,
            chunk_size=chunk_size,
            layout=layout,
            entropy_gradient=entropy_gradient,
            allowed=allowed,
        )
        if not torch.is_grad_enabled():
            self.release()
        return found

    def is_finite_on(self, ids: tuple[int, ...]) -> bool:
        """Return whether the log-probs of a sequence are finite."""
        found = super().is_finite_on(ids)
        self.release()
        return found

    def release(self) -> None:
        """Keep only this rank's part of the weights outside the layers."""
        self.base.reshard()
        self._use_head()

    def take_gradients(self) -> None:
        """Move the gradients of this rank's parts to the parameters in `local`."""
        for name, parameter in self._trained():
            gradient = parameter.grad
            self.local[name].grad = None if gradient is None else _local(gradient)
            parameter.grad = None

    def whole(self) -> dict[str, Tensor]:
        """Return the adapter's whole tensors, on the CPU."""
        return {name: p.detach().full_tensor().cpu() for name, p in self._trained()}  # type: ignore[attr-defined]

    def spread(self, name: str, part: Tensor) -> DTensor:
        """Return a tensor like a trained parameter, of which this rank holds a part."""
        like: Any = self.trained()[name]
        return DTensor.from_local(
            part.to(self.device),
            like.device_mesh,
            like.placements,
            shape=like.shape,
            stride=like.stride(),
        )

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor like a trained parameter."""
        like: Any = self.trained()[name]
        return distribute_tensor(
            whole.to(self.device), like.device_mesh, like.placements, src_data_rank=None
        ).to_local()

    def kept(self) -> Kept:
        """Return this rank's parts as they are now, for `put_back`."""
        return Kept({n: p.detach().clone() for n, p in self.local.items()}, self.serving)

    @torch.no_grad()
    def put_back(self, kept: Kept) -> None:
        """Return to earlier weights."""
        for name, parameter in self.local.items():
            parameter.copy_(kept.parameters[name])

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        """Set this rank's parts of whole tensors."""
        for name, parameter in self.local.items():
            parameter.copy_(self.part(name, tensors[name]))


def _check_same(model: nn.Module, ranks: Ranks) -> None:
    """Raise ConfigError unless the model without values has the tensors of rank 0's model."""
    shapes = [(n, tuple(t.shape), str(t.dtype)) for n, t in _tensors(model)]
    found: list[Any] = [shapes]
    torch.distributed.broadcast_object_list(found, 0, device=ranks.device)
    odd = sorted({*found[0]} ^ {*shapes})
    if ranks.any(true=bool(odd)):
        first = f", {odd[0][0]!r} first" if odd else ""
        raise ConfigError(
            f"{type(model).__name__} cannot be split over devices: {len(odd)} of its tensors are "
            f"not those of its config{first}",
            "Train it on one device.",
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def _place(module: nn.Module, ranks: Ranks) -> None:
    """Put a module's tensors on this rank's device, with rank 0's values; those that FSDP2 has
    split already stay.
    """
    # a tied tensor stays one; the old tensors are kept, so that no new one gets the id of one
    sent: dict[int, tuple[Any, Any]] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):  # noqa: SLF001
            for name, tensor in own.items():
                if tensor is None or isinstance(tensor, DTensor):
                    continue
                if id(tensor) not in sent:
                    sent[id(tensor)] = tensor, _sent(tensor, ranks)
                own[name] = sent[id(tensor)][1]


def _sent(tensor: Tensor, ranks: Ranks) -> Tensor:
    if tensor.is_meta:
        value = torch.empty_like(tensor, device=ranks.device)
    else:
        value = tensor.detach().to(ranks.device, copy=True).contiguous()
    ranks.broadcast(value)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _local(tensor: Any) -> Tensor:
    """Return this rank's part of a tensor, sharing its storage."""
    part: Tensor = tensor.detach().to_local()
    return part
