"""Sampling by a `Decoder`: prompts, of which only what is new is computed, and their next tokens.

Shapes: R rows, U prompts, T tokens of a pass, W places of the longest row, Q query heads, K heads
of keys and values, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from art_local.engine.decoder import Decoder, decoder_of
from art_local.engine.forward import SCORED_ROWS, Forward
from art_local.engine.fused_cache import FusedCache
from art_local.engine.layer_types import layer_types
from art_local.engine.packed import int8_product, product
from art_local.engine.prefixes import Prefixes
from art_local.engine.protocol import BASE
from art_local.engine.weights import Adapter

DECODERS = 2
"""Adapters whose products are kept: each takes as much memory as the linear layers."""

PIECE = 1024
"""New tokens of a prompt that attend together."""

Window = int | None
"""How many tokens attention sees; None: all before."""


@attrs.frozen
class Span:
    """The new tokens of a prompt in a pass: its slot, where in the slot and in the pass they begin,
    and how many they are. What comes before them is in the slot, or in slot `like` once the pass
    has computed it there.
    """

    slot: int
    past: int
    start: int
    length: int
    like: int | None = None

    @property
    def here(self) -> slice:
        """Their places in the pass."""
        return slice(self.start, self.start + self.length)

    @property
    def end(self) -> int:
        """The length of the prompt."""
        return self.past + self.length

    def pieces(self) -> Iterator[Span]:
        """Yield it in pieces whose masks are small: each sees those before it in the slot."""
        for done in range(0, self.length, PIECE):
            length = min(PIECE, self.length - done)
            like = None if done else self.like
            yield Span(self.slot, self.past + done, self.start + done, length, like)


class FusedForward(Forward):
    """Runs a model by its `Decoder`, on a CPU, with `int8` with rounded weights."""

    name = "fused"

    def __init__(self, module: Any, *, int8: bool = False) -> None:
        super().__init__(module)
        self._make, self.is_rounded = (int8_product if int8 else product), int8
        window = getattr(self.config, "sliding_window", None)
        kinds = layer_types(self.config)
        self._windows: list[Window] = [window if k == "sliding_attention" else None for k in kinds]
        self._decoders: WeakKeyDictionary[Adapter, Decoder] = WeakKeyDictionary()
        self._first: Adapter | None = Adapter(BASE)
        self._adapter: Adapter | None = None
        self._decoder: Decoder | None = None
        self.prefixes = Prefixes()
        self.use(self._first)

    def use(self, adapter: Adapter) -> None:
        """Compute with an adapter's weights, which the module has now."""
        decoder = self._decoders.pop(adapter, None)
        if decoder is not None and not decoder.is_current:
            self.prefixes.forget(adapter)
            decoder = None
        self._decoders[adapter] = self._decoder = decoder or self._new_decoder()
        self._adapter = adapter
        if adapter is not self._first:
            self._first = None

    def _new_decoder(self) -> Decoder:
        known = [each for each in self._decoders.values() if each.is_current]
        while len(self._decoders) >= DECODERS:
            del self._decoders[next(iter(self._decoders))]
        return decoder_of(self.module, known, self._make)

    def release(self) -> None:
        """Refer to no adapter, so that an unloaded one's memory is freed."""
        self._adapter = self._decoder = None

    def trim(self, tokens: int) -> None:
        """Keep at most so many tokens of ended sequences."""
        self.prefixes.shrink(tokens)

    def prompt_tokens(self) -> tuple[int, int]:
        """Return how many prompt tokens there were, and how many of them were not computed."""
        return self.prefixes.asked, self.prefixes.found

    def new_cache(self) -> FusedCache:
        """Make an empty cache for this model."""
        attention = self.module.model.layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        shape = (len(self._windows), heads, attention.head_dim)
        return FusedCache(shape, self.dtype, self.prefixes)

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: FusedCache
    ) -> Tensor:
        """Compute what is new of prompts once each, and append `source` [R] copies of them to the
        cache; logits [R, V].
        """
        assert self._decoder is not None
        cache.adapter = self._adapter
        first = len(cache.ids)
        slots = [first + list(source).index(number) for number in range(len(prompts))]
        known = [cache.restore(slot, prompt) for slot, prompt in zip(slots, prompts, strict=True)]
        cache.ids += [list(prompts[number]) for number in source]
        order, spans = _planned(prompts, slots, known)
        hidden_TH = self._prompts([prompts[number] for number in order], spans, cache)
        last_U = torch.empty(len(prompts), dtype=torch.long)
        last_U[order] = torch.tensor([span.start + span.length - 1 for span in spans])
        logits_UV = self._decoder.logits(hidden_TH[last_U])
        for number, slot in enumerate(slots):
            copies = [first + row for row, prompt in enumerate(source) if prompt == number]
            cache.copy(slot, [copy for copy in copies if copy != slot])
            cache.keep(slot)
        asked = sum(len(prompts[number]) for number in source)
        self.prefixes.asked += asked
        self.prefixes.found += asked - len(hidden_TH)
        return logits_UV[torch.tensor(list(source))]

    def decode(self, token_ids: Sequence[int], cache: FusedCache) -> Tensor:
        """Append one token to each row of the cache; logits [R, V]."""
        assert self._decoder is not None
        positions_R = torch.tensor(cache.lengths)
        for ids, token_id in zip(cache.ids, token_ids, strict=True):
            ids.append(token_id)
        rows, width, d = len(token_ids), cache.width, self._decoder
        rows_R = torch.arange(rows)
        masks = {window: self._mask(positions_R, width, window) for window in {*self._windows}}
        grouped = (rows, d.key_heads, d.query_heads // d.key_heads, d.head_size)
        pairs = (rows, 2, d.key_heads, d.head_size)

        def attend(number: int, joint: Tensor) -> Tensor:
            layer = cache.layers[number]
            layer[:, rows_R, :, positions_R] = joint[:, d.query_heads :].view(pairs)
            keys, values = layer[:, :rows, :, :width].unbind()
            return functional.scaled_dot_product_attention(
                joint[:, : d.query_heads].view(grouped),
                keys,
                values,
                attn_mask=masks[self._windows[number]],
                scale=d.scale,
            ).reshape(rows, -1)

        return d.logits(self._hidden(torch.tensor(token_ids), positions_R, attend))

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-prob of each token but the first of texts, by the layers that sample."""
        assert self._decoder is not None
        cache, spans, start = self.new_cache(), [], 0
        cache.reserve(len(texts), max(map(len, texts)))
        for slot, ids in enumerate(texts):
            spans.append(Span(slot, 0, start, len(ids)))
            start += len(ids)
        hidden_TH = self._prompts(texts, spans, cache)
        next_T1 = torch.tensor([[token_id] for ids in texts for token_id in (*ids[1:], 0)])
        found = [
            self._decoder.logits(hidden).float().log_softmax(-1).gather(1, following)
            for hidden, following in zip(
                hidden_TH.split(SCORED_ROWS), next_T1.split(SCORED_ROWS), strict=True
            )
        ]
        parts = torch.cat(found)[:, 0].split([span.length for span in spans])
        return [part[:-1].tolist() for part in parts]

    def _prompts(
        self, prompts: Sequence[Sequence[int]], spans: Sequence[Span], cache: FusedCache
    ) -> Tensor:
        """Return the hidden states [T, H] of the new tokens of prompts."""
        assert self._decoder is not None
        d = self._decoder
        ids_T = torch.tensor(
            [i for ids, span in zip(prompts, spans, strict=True) for i in ids[span.past :]]
        )
        positions_T = torch.cat([torch.arange(span.past, span.end) for span in spans])
        pieces = [piece for span in spans for piece in span.pieces()]

        def attend(number: int, joint: Tensor) -> Tensor:
            heads = joint.transpose(0, 1)
            pairs = heads[d.query_heads :].unflatten(0, (2, d.key_heads))
            found_TQD = joint.new_empty((len(joint), d.query_heads, d.head_size))
            for span in pieces:
                slot = cache.layers[number][:, span.slot]
                if span.like is not None:
                    same = cache.layers[number][:, span.like, :, : span.past]
                    slot[:, :, : span.past] = same
                slot[:, :, span.past : span.end] = pairs[:, :, span.here]
                keys, values = slot[:, None, :, : span.end].unbind()
                window = self._windows[number]
                mask = None
                if span.past or window is not None:
                    mask = self._mask(positions_T[span.here], span.end, window)
                found_TQD[span.here] = functional.scaled_dot_product_attention(
                    heads[None, : d.query_heads, span.here],
                    keys,
                    values,
                    attn_mask=None if mask is None else mask[:, 0, 0],
                    is_causal=mask is None and not span.past,
                    scale=d.scale,
                    enable_gqa=True,
                )[0].transpose(0, 1)
            return found_TQD.flatten(1)

        return self._hidden(ids_T, positions_T, attend)

    def _hidden(self, ids_T: Tensor, positions_T: Tensor, attend: Any) -> Tensor:
        assert self._decoder is not None
        decoder, rotary = self._decoder, self.module.model.rotary_emb
        cos_1TD, sin_1TD = rotary(decoder.embedding, position_ids=positions_T[None])
        half = sin_1TD.shape[-1] // 2
        sin_TD = torch.cat([-sin_1TD[0, :, :half], sin_1TD[0, :, half:]], dim=-1)
        return decoder.hidden(ids_T, cos_1TD[0], sin_TD, attend)

    def _mask(self, positions_N: Tensor, width: int, window: Window) -> Tensor | None:
        """Return what tokens at positions see of a slot, to be added to scores [N, 1, 1, W]; None
        when all of them see all.
        """
        places_W = torch.arange(width)
        seen_NW = places_W <= positions_N[:, None]
        if window is not None:
            seen_NW &= places_W > positions_N[:, None] - window
        if bool(seen_NW.all()):
            return None
        mask_NW = torch.zeros(seen_NW.shape, dtype=self.dtype)
        return mask_NW.masked_fill_(~seen_NW, torch.finfo(self.dtype).min)[:, None, None]


def _planned(
    prompts: Sequence[Sequence[int]], slots: Sequence[int], known: Sequence[int]
) -> tuple[list[int], list[Span]]:
    """Return the order in which prompts are computed, and their spans: a beginning that two of them
    share is computed once.
    """
    order = sorted(range(len(prompts)), key=lambda number: tuple(prompts[number]))
    spans: list[Span] = []
    for place, number in enumerate(order):
        prompt, past, like = prompts[number], known[number], None
        # the prompt before it in this order shares most with it
        other = prompts[order[place - 1]] if place else ()
        shared = min(_common(prompt, other), len(prompt) - 1)
        if shared > past:
            past, like = shared, slots[order[place - 1]]
        start = spans[-1].start + spans[-1].length if spans else 0
        spans.append(Span(slots[number], past, start, len(prompt) - past, like))
    return order, spans


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
