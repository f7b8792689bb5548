"""Sampling whose results do not depend on what is sampled at the same time, to the last bit.

Matrix products and reductions add in an order that depends on the shape of a pass. Here a row's
shapes depend on the row only: each prompt has a pass of its own, a decoding pass always has `ROWS`
rows (the last one is repeated where fewer are left), and each row attends to its own tokens by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from art_local.engine.cache import SlotCache, SlotPlan
from art_local.engine.forward import Forward, SlotForward
from art_local.engine.layer_types import context_length

ROWS = 16
NAME = "art_rows"
OPTION = "rows_plan"
PROMPT, DECODED = 5, 4


class ExactSlotForward(SlotForward):
    """Runs a model whose state is keys and values of full and sliding attention."""

    def __init__(self, module: Any) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        super().__init__(module)
        if module.config._attn_implementation == "sdpa":  # noqa: SLF001
            AttentionInterface.register(NAME, _attention)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            module.set_attn_implementation(NAME)

    def detach(self) -> None:
        """Leave the model to another forward pass."""
        super().detach()
        if self.module.config._attn_implementation == NAME:  # noqa: SLF001
            self.module.set_attn_implementation("sdpa")

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: SlotCache
    ) -> Tensor:
        """Compute prompts one by one and append `source` [R] copies of them to the cache; logits
        [R, V].
        """
        first = len(cache.lengths)
        cache.lengths += [len(prompts[i]) for i in source]
        cache.shifts += self._shifts(prompts, source)
        found = []
        for number, prompt in enumerate(prompts):
            slots = [first + row for row, i in enumerate(source) if i == number]
            cache.plan.slots = torch.tensor(slots, device=self.device)
            cache.plan.source = torch.zeros_like(cache.plan.slots)
            found.append(self._logits(cache, **self.inputs(self.padded([prompt])))[0, 0])
        return torch.stack(found)[torch.tensor(source, device=self.device)]

    def decode(self, token_ids: Sequence[int], cache: SlotCache) -> Tensor:
        """Append one token to each row of the cache; logits [N, V]."""
        positions_N = torch.tensor(cache.lengths, device=self.device)
        ids_N = torch.tensor(token_ids, device=self.device)
        cache.begin_decode(positions_N)
        cache.plan.whole = True
        self.last.places = None
        every = cache.plan.row_ids
        found = [
            self._decoded(ids_N, positions_N, every[start : start + ROWS], cache)
            for start in range(0, len(every), ROWS)
        ]
        cache.plan.whole = False
        return torch.cat(found)

    def _decoded(self, ids_N: Tensor, positions_N: Tensor, rows_R: Tensor, cache: SlotCache) -> Any:
        missing = ROWS - len(rows_R)
        rows_P = torch.cat([rows_R, rows_R[-1:].expand(missing)])
        plan = cache.plan
        plan.row_ids, plan.positions = rows_P, positions_N[rows_P]
        shifts_N = torch.tensor(cache.shifts, device=self.device)
        options: dict[str, Any] = {OPTION: plan}
        logits = self._logits(
            cache,
            input_ids=ids_N[rows_P][:, None],
            position_ids=(plan.positions + shifts_N[rows_P])[:, None],
            attention_mask=self._masks(plan.positions, cache.width),
            **options,
        )
        return logits[: len(rows_R), 0]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows_plan: SlotPlan | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as attend

    if rows_plan is None:
        whole: tuple[Tensor, None] = attend(module, query, key, value, attention_mask, **options)
        return whole
    found: list[Tensor] = []
    slots, lengths = rows_plan.row_ids.tolist(), (rows_plan.positions + 1).tolist()
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        if row and slot == slots[row - 1]:
            found.append(found[-1])
            continue
        mask = None if attention_mask is None else attention_mask[row : row + 1, ..., :length]
        own = key[slot : slot + 1, :, :length], value[slot : slot + 1, :, :length]
        found.append(attend(module, query[row : row + 1], *own, mask, **options)[0])
    return torch.cat(found), None


@torch.inference_mode()
def is_exact(forward: Forward) -> bool:
    """Return whether a text's logits are the same bits by itself and among others, at any place."""
    length = max(min(PROMPT, context_length(forward.config) - DECODED - 2), 1)
    size = forward.config.vocab_size
    prompts = [[(7 * place + 3 * n + 1) % size for place in range(length + n)] for n in range(3)]
    alone = _decoded(forward, prompts[:1], [0])[:, 0]
    among = _decoded(forward, prompts, [0, 1, 1, 2, 0, *[2] * (ROWS - 4), 0])
    return all(torch.equal(alone, among[:, row]) for row in (0, 4, ROWS + 1))


def _decoded(forward: Forward, prompts: list[list[int]], source: list[int]) -> Tensor:
    """Return the logits [T, R, V] of rows that go on from prompts with the same tokens."""
    cache, rows = forward.new_cache(), len(source)
    cache.reserve(rows, max(map(len, prompts)))
    steps = [forward.prefill(prompts, source, cache)]
    for token_id in range(DECODED - 1):
        cache.reserve(rows, cache.width + 1)
        steps.append(forward.decode([token_id] * rows, cache))
    return torch.stack(steps)
