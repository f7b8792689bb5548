"""Keys and values of the running sequences: one slot per sequence, written in place, read as one
contiguous block.

Each slot contains its sequence from position 0. A new sequence gets the next slot; the last slot is
moved into the slot of a finished sequence. So a step reads `[:rows, :, :width]` without copying.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

WIDTH_STEP = 128


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values [S, H, T, D]; `update` writes to the places of the plan."""

    is_sliding = False

    def __init__(self, plan: SlotPlan) -> None:
        super().__init__()
        self.plan = plan

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Create the buffers with zeros: masked values must be finite, too."""
        slots, width = self.plan.capacity
        self.keys = key_states.new_zeros((slots, key_states.shape[1], width, key_states.shape[3]))
        self.values = value_states.new_zeros(
            (slots, value_states.shape[1], width, value_states.shape[3])
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new states [U, H, Q, D] and return the keys and values that the step attends to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        plan = self.plan
        assert self.keys is not None and self.values is not None
        if plan.source is not None:
            tokens = slice(0, key_states.shape[2])
            self.keys[plan.slots, :, tokens] = key_states[plan.source]
            self.values[plan.slots, :, tokens] = value_states[plan.source]
            return key_states, value_states
        rows = len(plan.row_ids)
        self.keys[plan.row_ids, :, plan.positions] = key_states[:, :, 0]
        self.values[plan.row_ids, :, plan.positions] = value_states[:, :, 0]
        if plan.whole:
            return self.keys[:, :, : plan.width], self.values[:, :, : plan.width]
        return self.keys[:rows, :, : plan.width], self.values[:rows, :, : plan.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of a prefill's mask; decoding passes its own mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0: prompts are always prefilled from their first token."""
        return 0

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot."""
        assert self.keys is not None and self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def grow(self, rows: int, width: int) -> None:
        """Move the contents into buffers of the plan's capacity."""
        if not self.is_initialized:
            return
        old_keys, old_values = self.keys, self.values
        assert old_keys is not None and old_values is not None
        self.lazy_initialization(old_keys, old_values)
        self.keys[:rows, :, :width] = old_keys[:rows, :, :width]
        self.values[:rows, :, :width] = old_values[:rows, :, :width]


class SlotPlan:
    """The places that the running step writes and reads, shared by all layers.

    A prefill sets `source` [R] (the prompt of each new row) and `slots` (their places); a decoding
    step sets `row_ids` [N], `positions` [N] and `width`, and with `whole` it reads all slots.
    """

    def __init__(self) -> None:
        self.capacity = (0, 0)
        self.slots: slice | torch.Tensor = slice(0)
        self.whole = False
        self.source: torch.Tensor | None = None
        self.row_ids = torch.empty(0, dtype=torch.long)
        self.positions = torch.empty(0, dtype=torch.long)
        self.width = 0


class SlotCache(Cache):
    """The cache of one batch; `lengths[i]` is the number of tokens in slot i, and `shifts[i]` by
    how much the rotary position of the next one differs from that: after images, in some models.
    """

    def __init__(self, num_layers: int) -> None:
        self.plan = SlotPlan()
        self.lengths: list[int] = []
        self.shifts: list[int] = []
        super().__init__(layers=[SlotLayer(self.plan) for _ in range(num_layers)])

    @property
    def width(self) -> int:
        """The length of the longest sequence."""
        return max(self.lengths, default=0)

    @property
    def bytes_per_token(self) -> int:
        """The memory that a token of a row takes."""
        slots, tokens = self.plan.capacity
        held = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in held) // max(slots * tokens, 1)

    def reserve(self, rows: int, width: int) -> None:
        """Make room for `rows` rows of `width` tokens."""
        slots, tokens = self.plan.capacity
        if rows <= slots and width <= tokens:
            return
        wanted_slots = slots if rows <= slots else 1 << (rows - 1).bit_length()
        wanted_tokens = tokens if width <= tokens else -(-width // WIDTH_STEP) * WIDTH_STEP
        self.plan.capacity = (wanted_slots, wanted_tokens)
        for layer in self.layers:
            layer.grow(len(self.lengths), self.width)

    def begin_prefill(self, source: torch.Tensor, lengths: list[int]) -> None:
        """Prepare a forward pass that fills new slots with copies `source` [R] of its prompts."""
        first = len(self.lengths)
        self.plan.slots, self.plan.source = slice(first, first + len(lengths)), source
        self.lengths += lengths

    def begin_decode(self, positions: torch.Tensor) -> None:
        """Prepare a forward pass that appends one token to each slot, at `positions` [N]."""
        self.lengths = [length + 1 for length in self.lengths]
        plan = self.plan
        plan.source, plan.positions, plan.width = None, positions, self.width
        plan.row_ids = torch.arange(len(self.lengths), device=positions.device)

    def remove(self, row: int) -> None:
        """Remove a slot; the last slot moves into its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                layer.move(last, row, self.lengths[last])
        for values in (self.lengths, self.shifts):
            values[row] = values[last]
            values.pop()
