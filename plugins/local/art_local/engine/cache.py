"""Keys and values of the running sequences: one slot a sequence, written in place, read as one
contiguous block.

A slot holds its sequence from position 0, whatever its neighbours' lengths: a new sequence takes
the next slot, a finished one's slot is filled with the last, and a step reads `[:rows, :, :width]`
without copying.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

WIDTH_STEP = 128


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values [S, H, T, D]; `update` writes where the cache's plan says."""

    is_sliding = False

    def __init__(self, plan: SlotPlan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the buffers, zeroed: what a mask hides must still be finite."""
        slots, width = self.plan.capacity
        self.keys = key_states.new_zeros((slots, key_states.shape[1], width, key_states.shape[3]))
        self.values = value_states.new_zeros(
            (slots, value_states.shape[1], width, value_states.shape[3])
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states [U, H, Q, D] and return what the step attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        assert self.keys is not None and self.values is not None
        if plan.source is not None:
            slots, tokens = (
                slice(plan.first, plan.first + len(plan.source)),
                slice(0, key_states.shape[2]),
            )
            self.keys[slots, :, tokens] = key_states[plan.source]
            self.values[slots, :, tokens] = value_states[plan.source]
            return key_states, value_states
        rows = len(plan.row_ids)
        self.keys[plan.row_ids, :, plan.positions] = key_states[:, :, 0]
        self.values[plan.row_ids, :, plan.positions] = value_states[:, :, 0]
        return self.keys[:rows, :, : plan.width], self.values[:rows, :, : plan.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a prefill's own mask; decoding brings its mask along."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Prompts are always prefilled from their first token."""
        return 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot."""
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def grow(self, rows: int, width: int) -> None:
        """Move what is held into buffers of the plan's capacity."""
        if not self.is_initialized:
            return
        old_keys, old_values = self.keys, self.values
        assert old_keys is not None and old_values is not None
        self.lazy_initialization(old_keys, old_values)
        self.keys[:rows, :, :width] = old_keys[:rows, :, :width]
        self.values[:rows, :, :width] = old_values[:rows, :, :width]


class SlotPlan:
    """Where the running step writes and reads, shared by all layers.

    A prefill sets `source` [R] (which prompt each new row is a copy of) and `first` (their first
    slot); a decoding step sets `row_ids` [N], `positions` [N] and `width`.
    """

    def __init__(self) -> None:
        self.capacity = (0, 0)
        self.first = 0
        self.source: torch.Tensor | None = None
        self.row_ids = torch.empty(0, dtype=torch.long)
        self.positions = torch.empty(0, dtype=torch.long)
        self.width = 0


class SlotCache(Cache):
    """The cache of one batch; `lengths[i]` is how many tokens slot i holds."""

    def __init__(self, num_layers: int) -> None:
        self.plan = SlotPlan()
        self.lengths: list[int] = []
        super().__init__(layers=[SlotLayer(self.plan) for _ in range(num_layers)])

    @property
    def width(self) -> int:
        """The longest sequence held."""
        return max(self.lengths, default=0)

    def reserve(self, rows: int, width: int) -> None:
        """Make room for so many rows of so many tokens."""
        slots, tokens = self.plan.capacity
        if rows <= slots and width <= tokens:
            return
        wanted_slots = slots if rows <= slots else 1 << (rows - 1).bit_length()
        wanted_tokens = tokens if width <= tokens else -(-width // WIDTH_STEP) * WIDTH_STEP
        self.plan.capacity = (wanted_slots, wanted_tokens)
        for layer in self.layers:
            layer.grow(len(self.lengths), self.width)

    def begin_prefill(self, source: torch.Tensor, lengths: list[int]) -> None:
        """The next forward pass fills new slots with copies `source` [R] of its prompts."""
        self.plan.first, self.plan.source = len(self.lengths), source
        self.lengths += lengths

    def begin_decode(self, positions: torch.Tensor) -> None:
        """The next forward pass appends one token to each slot, at `positions` [N]."""
        self.lengths = [length + 1 for length in self.lengths]
        plan = self.plan
        plan.source, plan.positions, plan.width = None, positions, self.width
        plan.row_ids = torch.arange(len(self.lengths), device=positions.device)

    def remove(self, row: int) -> None:
        """Drop a slot; the last slot takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                layer.move(last, row, self.lengths[last])
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
