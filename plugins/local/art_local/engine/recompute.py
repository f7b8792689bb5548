"""Sampling without a cache: for each token whole sequences are computed, as the trainer does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch

from art_local.engine.forward import Forward

TOKENS_PER_PASS = 8192


@attrs.define(eq=False)
class TextCache:
    """The token ids of each row."""

    rows: list[list[int]] = attrs.field(factory=list)

    @property
    def width(self) -> int:
        """The longest sequence held."""
        return max(map(len, self.rows), default=0)

    @property
    def bytes_per_token(self) -> int:
        """An entry of a list of token ids."""
        return 8

    def reserve(self, rows: int, width: int) -> None:
        """Lists of token ids grow by themselves."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        self.rows[row] = self.rows[-1]
        self.rows.pop()


class RecomputeForward(Forward):
    """Runs a model that has no cache, or one that gives other log-probs."""

    name = "whole texts"
    takes_images = True

    def __init__(self, module: Any, *, apart: bool = False) -> None:
        super().__init__(module)
        self._tokens_per_pass = 1 if apart else TOKENS_PER_PASS
        # what a pass holds of a token while it runs
        self.cache_bytes_per_token = int(4 * self.config.hidden_size * self.dtype.itemsize)

    def new_cache(self) -> TextCache:
        """Make an empty cache for this model."""
        return TextCache()

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: TextCache
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """
        cache.rows += [list(prompts[i]) for i in source]
        return self._logits(prompts)[torch.tensor(source, device=self.device)]

    def decode(self, token_ids: Sequence[int], cache: TextCache) -> torch.Tensor:
        """Append one token to each row of the cache; logits [N, V]."""
        for row, token_id in zip(cache.rows, token_ids, strict=True):
            row.append(token_id)
        return self._logits(cache.rows)

    def _logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        found = [
            self.module(**self.inputs(self.padded(part)), use_cache=False).logits[:, 0]
            for part in _parts(sequences, self._tokens_per_pass)
        ]
        return torch.cat(found)


def _parts(sequences: Sequence[Sequence[int]], tokens: int) -> Iterator[Sequence[Sequence[int]]]:
    """Yield sequences in parts of so many padded tokens, at least one in each."""
    size = max(tokens // max(map(len, sequences)), 1)
    for start in range(0, len(sequences), size):
        yield sequences[start : start + size]
