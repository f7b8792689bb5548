"""LoRA on CPU: tokens are grouped by adapter once a forward pass, each group is one product.

Shapes: T tokens, I inputs, O outputs, R rank, S adapter slots. vLLM keeps the adapters of a layer
as `a` [S, 1, R, I] and `b` [S, 1, O, R]; a token's slot is -1 when it has no adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Rows: TypeAlias = "slice | torch.Tensor"
Group: TypeAlias = "tuple[int, Rows]"


def grouped(slots_T: torch.Tensor) -> list[Group]:
    """Return each adapter slot in use with its tokens: a slice where they are neighbours, else
    their indices. Tokens without an adapter are in no group.
    """
    groups: list[Group] = []
    for slot in slots_T.unique().tolist():
        if slot < 0:
            continue
        rows = (slots_T == slot).nonzero()[:, 0]
        first, after = int(rows[0]), int(rows[-1]) + 1
        groups.append((slot, slice(first, after) if after - first == len(rows) else rows))
    return groups


def taken(x_TI: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return some rows; `index_select` is several times faster than `x[indices]` here."""
    return x_TI[rows] if isinstance(rows, slice) else x_TI.index_select(0, rows)


def product(x_TI: torch.Tensor, stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """Return x · weightᵀ in the adapters' dtype, with one slot of [S, 1, O, I] or [S, O, I]."""
    weight_OI = stacked[slot].view(stacked.shape[-2:])
    return linear(x_TI.to(weight_OI.dtype), weight_OI)


def write(y_TO: torch.Tensor, rows: Rows, delta: torch.Tensor, *, add: bool) -> None:
    """Add to some rows, or replace them. A model may pad its outputs otherwise than its adapters:
    the columns that both have count.
    """
    columns = min(y_TO.shape[1], delta.shape[1])
    y_TO, delta = y_TO[:, :columns], delta[:, :columns].to(y_TO.dtype)
    if not add:
        y_TO[rows] = delta
    elif isinstance(rows, slice):
        y_TO[rows] += delta
    else:
        y_TO.index_add_(0, rows, delta)


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """What the layers of a model with adapters call, for all slots and tokens of a batch."""

    def __init__(
        self,
        max_num_batched_tokens: int,
        max_batches: int,
        device: torch.device | str,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        self.token_groups: list[Group] = []
        self.sampler_groups: list[Group] = []

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Group the tokens of the next forward pass."""
        super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        self.token_groups = grouped(self.token_lora_indices)
        self.sampler_groups = grouped(self.sampler_indices)

    def add_shrink(
        self,
        y: Sequence[torch.Tensor] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Set y[i] to x · a[i]ᵀ · scale, for tokens with an adapter."""
        x_TI = x.view(-1, x.shape[-1])
        for slot, rows in self.token_groups:
            picked = taken(x_TI, rows)
            for buffer, a in zip(y, lora_a_stacked, strict=True):
                shrunk = product(picked, a, slot) * scale
                write(buffer.view(-1, buffer.shape[-1]), rows, shrunk, add=False)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Sequence[torch.Tensor] | torch.Tensor,
        lora_b_stacked: Sequence[torch.Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add x[i] · b[i]ᵀ to y[:, slice i], for tokens with an adapter."""
        y_TO = y.view(-1, y.shape[-1])
        for slot, rows in self.token_groups:
            offset = offset_start
            for shrunk, b, size in zip(x, lora_b_stacked, output_slices, strict=True):
                delta = product(taken(shrunk, rows), b, slot)
                write(y_TO[:, offset : offset + size], rows, delta, add=add_inputs)
                offset += size

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Add x · bᵀ to y, for tokens with an adapter; x holds the adapters' own embeddings."""
        for slot, rows in self.token_groups:
            picked = taken(x, rows)
            if picked.any():  # most adapters leave the embeddings alone
                write(y, rows, product(picked, lora_b_stacked, slot), add=add_inputs)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        *,
        buffer: Sequence[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add x · a[i]ᵀ · b[i]ᵀ · scale to y[:, slice i], for tokens with an adapter."""
        if buffer is not None:
            self.add_shrink(buffer, x, lora_a_stacked, scale)
            self.add_expand(y, buffer, lora_b_stacked, output_slices, **kwargs)
            return
        add = kwargs.get("add_inputs", True)
        for slot, rows in self.token_groups:
            picked, offset = taken(x, rows), 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                shrunk = product(picked, a, slot)
                delta = product(shrunk if scale == 1 else shrunk * scale, b, slot)
                write(y[:, offset : offset + size], rows, delta, add=add)
                offset += size

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Add x · aᵀ · bᵀ · scale to y, for sampled tokens with an adapter.

        For `prompt_logprobs` vLLM gives the rows of one prompt here, without their owner: that is
        harmless where the adapters leave the output layer alone, and refused where they do not.
        """
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        unknown = len(x_TI) != len(self.sampler_indices)
        for slot, rows in self.sampler_groups:
            picked = x_TI if unknown else taken(x_TI, rows)
            shrunk = product(picked, lora_a_stacked, slot) * scale
            if not shrunk.any():  # most adapters leave the output layer alone
                continue
            if unknown:
                raise NotImplementedError(
                    "prompt_logprobs while an adapter in use trains the output layer: vLLM does "
                    "not pass the owner of these tokens; ask for them without such adapters"
                )
            write(y_TO, rows, product(shrunk, lora_b_stacked, slot), add=True)

    def apply_lora_full_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        weight_stacked: torch.Tensor,
        bias_stacked: torch.Tensor,
        module_enabled: torch.Tensor,
    ) -> None:
        """Replace the outputs of a classification head by those of the adapter's own head."""
        adapter_y = torch.zeros((x.size(0), weight_stacked.size(-2)), dtype=torch.float32)
        for slot, rows in self.sampler_groups:
            write(adapter_y, rows, product(taken(x, rows), weight_stacked, slot), add=False)
        chosen = self._select_full_linear_output(y, adapter_y, bias_stacked, module_enabled)
        y.copy_(chosen)
