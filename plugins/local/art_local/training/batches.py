"""Training sequences as padded tensors within a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from art_core.rl.sequences import TokenSequence
from art_local.training.layout import Layout


@attrs.frozen(kw_only=True, eq=False)
class Allowed:
    """The tokens that grammars allow: packed masks `bits_CK` [C, ceil(V / 8)], uint8, with the
    first token in the lowest bit of the first byte, and the index of each row's mask in `masks_R`,
    -1 for none.
    """

    bits_CK: Tensor
    masks_R: Tensor

    def to(self, device: torch.device) -> Allowed:
        """Return the masks on a device."""
        return Allowed(bits_CK=self.bits_CK.to(device), masks_R=self.masks_R.to(device))


@attrs.frozen(kw_only=True, eq=False)
class MicroBatch:
    """Rows of one forward pass, padded on the right: B rows of S tokens, R of which have a loss.

    `ids_BS` are the tokens. A causal model's output at a token does not depend on later tokens, so
    right padding needs no attention mask. `rows_R` are flat positions in [B*S] whose *next* token
    has a loss; `targets_R` is that token, `old_logprobs_R` its log-prob in the engine,
    `advantages_R` its advantage, `weights_R` the weight of its sequence, `sequences_R` the index
    of its sequence in the step. A sequence is never split, so sums over it are complete.

    A packed micro-batch has B = 1 and a `layout`; several rows may refer to one hidden state.
    `allowed` are the tokens that were allowed, if answers were sampled under grammars.
    """

    ids_BS: Tensor
    rows_R: Tensor
    targets_R: Tensor
    old_logprobs_R: Tensor
    advantages_R: Tensor
    weights_R: Tensor
    sequences_R: Tensor
    layout: Layout | None = None
    allowed: Allowed | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on a device."""
        moved: dict[str, Any] = {}
        for field in attrs.fields(MicroBatch):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device)
        return MicroBatch(**moved)


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split rows into micro-batches: indices of rows, longest first, rows x longest <= `budget`
    tokens.

    A row longer than the budget is a micro-batch of its own. Rows of equal length keep their order.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def micro_batches(
    sequences: Sequence[TokenSequence], budget: int, *, pad_id: int = 0
) -> Iterator[MicroBatch]:
    """Yield the sequences as micro-batches of at most `budget` tokens, including padding."""
    for indices in plan([len(s.token_ids) for s in sequences], budget):
        yield collate([sequences[i] for i in indices], pad_id, indices)


def collate(
    sequences: Sequence[TokenSequence], pad_id: int = 0, indices: Sequence[int] | None = None
) -> MicroBatch:
    """Pad sequences on the right into one micro-batch; a sequence's first token never has a loss.
    `indices` are their places in the step, by default 0, 1, 2, ...
    """
    places = range(len(sequences)) if indices is None else indices
    width = max(len(s.token_ids) for s in sequences)
    ids_BS = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    rows: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    values: list[tuple[float, float, float]] = []
    for b, s in enumerate(sequences):
        advantages = s.advantages
        ids_BS[b, : len(s.token_ids)] = torch.tensor(s.token_ids)
        for t in range(1, len(s.token_ids)):
            if s.trainable[t]:
                rows.append(b * width + t - 1)
                targets.append(s.token_ids[t])
                owners.append(places[b])
                values.append((s.logprobs[t], advantages[t], s.weight))
    old_R, advantages_R, weights_R = (
        torch.tensor(values, dtype=torch.float32).reshape(-1, 3).unbind(1)
    )
    return MicroBatch(
        ids_BS=ids_BS,
        rows_R=torch.tensor(rows, dtype=torch.long),
        targets_R=torch.tensor(targets, dtype=torch.long),
        old_logprobs_R=old_R,
        advantages_R=advantages_R,
        weights_R=weights_R,
        sequences_R=torch.tensor(owners, dtype=torch.long),
    )
