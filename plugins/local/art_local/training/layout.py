"""The layout of sequences in one packed row, and which tokens attend to which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import attrs
import torch
from torch import Tensor

PADDING = 0.125
"""Segments share a block if padding adds at most this share to the shortest one."""
BLOCK_SCORES = 1 << 21
"""Maximum number of scores of one head in a block: n * L * L."""


@attrs.frozen(kw_only=True)
class Shape:
    """A pack: the `prefix` tokens that its sequences have in common, once, then each sequence's own
    tokens, of the lengths `segments`. A sequence that shares nothing is a pack of one segment
    without prefix.
    """

    prefix: int
    segments: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the pack."""
        return self.prefix + sum(self.segments)


@attrs.frozen(kw_only=True, eq=False)
class Block:
    """n segments of about equal length, padded on the right to L. `index` [n * L] are their places
    in the row (padding repeats the segment's first place), `real` the places in [n * L] that are
    not padding (None: there is no padding). `start` is the first place if they are contiguous.
    """

    count: int
    length: int
    index: Tensor
    real: Tensor | None
    start: int | None

    def to(self, device: torch.device) -> Block:
        """Return the block on a device."""
        real = None if self.real is None else self.real.to(device)
        return attrs.evolve(self, index=self.index.to(device), real=real)


@attrs.frozen(kw_only=True, eq=False)
class Layout:
    """One row of S tokens, pack after pack: [prefix | segment | segment | ...].

    A token attends to its own segment up to itself, and to all of its pack's prefix. `positions_S`
    continue after the prefix in each segment. `segments_S` numbers the segments (a prefix is one,
    too), `prefixes_S` is the number of the token's prefix, or of its own segment without one.
    `shared` lists for each prefix its places (start, stop), then those of the tokens after it.
    `notes` caches values that an attention computes once for all layers.
    """

    positions_S: Tensor
    segments_S: Tensor
    prefixes_S: Tensor
    blocks: tuple[Block, ...]
    shared: tuple[tuple[int, int, int, int], ...]
    notes: dict[str, Any] = attrs.field(factory=dict)

    @cached_property
    def mask_SS(self) -> Tensor:  # noqa: N802  (a shape suffix)
        """The dense mask: whether a token (row) attends to another one (column). For tests, and for
        devices without a kernel.
        """
        places_S = torch.arange(len(self.positions_S), device=self.positions_S.device)
        return self.attends(places_S[:, None], places_S[None, :])

    def attends(self, query: Tensor, key: Tensor) -> Tensor:
        """Return for places in the row whether the query's token attends to the key's."""
        segment = self.segments_S[key]
        own = (self.segments_S[query] == segment) | (self.prefixes_S[query] == segment)
        return own & (key <= query)

    def to(self, device: torch.device) -> Layout:
        """Return the layout on a device."""
        if self.positions_S.device == device:
            return self
        return Layout(
            positions_S=self.positions_S.to(device),
            segments_S=self.segments_S.to(device),
            prefixes_S=self.prefixes_S.to(device),
            blocks=tuple(block.to(device) for block in self.blocks),
            shared=self.shared,
        )


def layout_of(shapes: Iterable[Shape]) -> Layout:
    """Return the layout of packs in sequence; empty prefixes and segments are left out."""
    spans: list[tuple[int, int]] = []  # of each segment: start, length
    before: list[tuple[int, int]] = []  # of each segment: its prefix' tokens and number
    shared = []
    at = 0
    for shape in shapes:
        number = len(spans)
        lengths = [shape.prefix, *shape.segments]
        starts = [at + offset for offset in accumulate(lengths, initial=0)]
        behind = starts.pop()
        if shape.prefix and behind > starts[1]:
            shared.append((at, at + shape.prefix, at + shape.prefix, behind))
        for place, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            if length:
                has_prefix = place and shape.prefix
                before.append((shape.prefix, number) if has_prefix else (0, len(spans)))
                spans.append((start, length))
        at = behind
    lengths_N = torch.tensor([length for _, length in spans])
    ends_N = lengths_N.cumsum(0)
    offsets_N, prefixes_N = torch.tensor(before).unbind(1)
    shift_N = offsets_N - (ends_N - lengths_N)
    return Layout(
        positions_S=torch.arange(at) + shift_N.repeat_interleave(lengths_N),
        segments_S=torch.arange(len(spans)).repeat_interleave(lengths_N),
        prefixes_S=prefixes_N.repeat_interleave(lengths_N),
        blocks=tuple(_blocks(spans)),
        shared=tuple(shared),
    )


def _blocks(spans: Sequence[tuple[int, int]]) -> Iterable[Block]:
    ordered = sorted(spans, key=lambda span: (-span[1], span[0]))
    block: list[tuple[int, int]] = []
    for start, length in ordered:
        longest = block[0][1] if block else length
        too_short = longest > length * (1 + PADDING)
        if block and (too_short or (len(block) + 1) * longest**2 > BLOCK_SCORES):
            yield _block(block)
            block = []
        block.append((start, length))
    if block:
        yield _block(block)


def _block(spans: Sequence[tuple[int, int]]) -> Block:
    longest = spans[0][1]
    starts_n1, lengths_n1 = torch.tensor(spans)[:, :, None].unbind(1)
    steps_1L = torch.arange(longest)[None]
    inside_nL = steps_1L < lengths_n1
    index = (starts_n1 + torch.where(inside_nL, steps_1L, 0)).flatten()
    whole = bool(inside_nL.all())
    first = spans[0][0]
    in_a_run = whole and all(s == first + i * longest for i, (s, _) in enumerate(spans))
    return Block(
        count=len(spans),
        length=longest,
        index=index,
        real=None if whole else inside_nL.flatten().nonzero()[:, 0],
        start=first if in_a_run else None,
    )
