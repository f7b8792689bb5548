"""The tokens that grammars allowed: the policy that sampled is a softmax over them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from art_core.rl.batch import no_grammars
from art_core.rl.sequences import TokenSequence
from art_local.constraints.vocabulary import Vocabulary
from art_local.engine.sampling import unpacked
from art_local.training.batches import Allowed, MicroBatch

FORBIDDEN = -1e9
"""The logit of a token that is not allowed: its probability is 0, and 0 times it is 0."""


def with_allowed(
    batch: MicroBatch, sequences: Sequence[TokenSequence], vocabulary: Vocabulary | None
) -> MicroBatch:
    """Return a micro-batch of these sequences with the tokens that were allowed.

    Raises ConfigError without a vocabulary, or for a sequence that its grammars do not allow.
    """
    members = [m for m in batch.sequences_R.unique().tolist() if sequences[m].grammars]
    if not members:
        return batch
    if vocabulary is None:
        raise no_grammars()
    known: dict[bytes, int] = {}
    masks_R = torch.full_like(batch.sequences_R, -1)
    for member in members:
        found = _masks(sequences[member], vocabulary, known)
        masks_R[batch.sequences_R == member] = torch.tensor(found, dtype=torch.long)
    bits_CK = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8)
    allowed = Allowed(bits_CK=bits_CK.reshape(len(known), -1), masks_R=masks_R)
    return attrs.evolve(batch, allowed=allowed)


def _masks(sequence: TokenSequence, vocabulary: Vocabulary, known: dict[bytes, int]) -> list[int]:
    """Return for each loss token the index of its mask, which is added to `known`; -1 for none."""
    at = [-1] * len(sequence.token_ids)
    for start, end, grammar in sequence.grammars:
        masks = vocabulary.masks(grammar, sequence.token_ids[start:end])
        at[start:end] = [known.setdefault(mask, len(known)) for mask in masks]
    pairs = zip(at[1:], sequence.trainable[1:], strict=True)
    return [mask for mask, trainable in pairs if trainable]


def forbid_(logits_RV: Tensor, allowed: Allowed | None, rows: slice) -> None:
    """Set the logits of tokens that are not allowed, in place. `rows` are those of the micro-batch
    that the logits are of.
    """
    if allowed is None:
        return
    masks_R = allowed.masks_R[rows]
    at_M = (masks_R >= 0).nonzero()[:, 0]
    if len(at_M):
        allowed_MV = unpacked(allowed.bits_CK[masks_R[at_M]], logits_RV.shape[1])
        logits_RV[at_M] = logits_RV[at_M].masked_fill(~allowed_MV, FORBIDDEN)
