"""The keys and values of a batch for `FusedForward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from art_local.engine.prefixes import Prefixes
from art_local.engine.weights import Adapter

WIDTH_STEP = 128


class FusedCache:
    """A buffer [2, S, K, W, D] for each layer: slot s has the keys and values of row s from its
    first token on. `ids[i]` are the tokens of row i; `adapter` made them.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, prefixes: Prefixes) -> None:
        self.ids: list[list[int]] = []
        self.layers: list[Tensor] = []
        self.adapter: Adapter | None = None
        self._count, *self._heads = shape
        self._dtype, self._prefixes = dtype, prefixes
        self._capacity = (0, 0)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each row."""
        return [len(ids) for ids in self.ids]

    @property
    def width(self) -> int:
        """The length of the longest row."""
        return max(map(len, self.ids), default=0)

    @property
    def bytes_per_token(self) -> int:
        """The memory that a token of a row takes."""
        heads, size = self._heads
        return 2 * self._count * heads * size * self._dtype.itemsize

    def reserve(self, rows: int, width: int) -> None:
        """Make room for `rows` rows of `width` tokens."""
        slots, places = self._capacity
        if rows <= slots and width <= places:
            return
        slots = slots if rows <= slots else 1 << (rows - 1).bit_length()
        places = places if width <= places else -(-width // WIDTH_STEP) * WIDTH_STEP
        self._capacity = (slots, places)
        heads, size = self._heads
        old, self.layers = self.layers, []
        used, filled = len(self.ids), self.width
        for number in range(self._count):
            # zeros: masked keys and values must be finite, too
            layer = torch.zeros((2, slots, heads, places, size), dtype=self._dtype)
            if old:
                layer[:, :used, :, :filled] = old[number][:, :used, :, :filled]
                old[number] = layer
            self.layers.append(layer)

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """Copy a slot to other slots."""
        length = len(self.ids[source])
        for layer in self.layers if targets else ():
            layer[:, list(targets), :, :length] = layer[:, source : source + 1, :, :length]

    def restore(self, slot: int, ids: Sequence[int]) -> int:
        """Fill a slot with what is kept of a sequence's beginning, and return how many tokens that
        is; the last token is always left to compute.
        """
        assert self.adapter is not None
        blocks = self._prefixes.longest(self.adapter, ids[:-1])
        if not blocks:
            return 0
        kept = torch.cat(blocks, dim=3)
        for layer, values in zip(self.layers, kept, strict=True):
            layer[:, slot, :, : kept.shape[3]] = values
        return kept.shape[3]

    def keep(self, row: int) -> None:
        """Keep a row's tokens for prompts that begin with them."""

        def read(begin: int, end: int) -> Tensor:
            return torch.stack([layer[:, row, :, begin:end] for layer in self.layers])

        assert self.adapter is not None
        self._prefixes.keep(self.adapter, self.ids[row], read)

    def remove(self, row: int) -> None:
        """Keep a row's tokens, and drop it; the last row takes its place."""
        self.keep(row)
        last = len(self.ids) - 1
        if row != last:
            self.copy(last, [row])
        self.ids[row] = self.ids[last]
        self.ids.pop()
