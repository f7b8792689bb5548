"""Whether a policy's rows may be packed: asked once, answered by comparing it with its own rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import torch

from art_core.rl.sequences import TokenSequence
from art_local.training.attention import UnpackableError
from art_local.training.batches import MicroBatch, collate
from art_local.training.memory import is_out_of_memory
from art_local.training.packing import Pack, packed, shared_prefixes

if TYPE_CHECKING:
    from art_local.training.policy import Policy

log = logging.getLogger("art_local")

TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_BF16 = 0.2
"""Nats by which the log-prob of a token may differ on average. Of SmolLM2-135M packed rows differ
from rows by 3e-6 in fp32 and by 0.05 in bf16 (as two right attentions over the same rows do, and
either from fp32); a mask that shows other sequences, by 1.1.
"""
SAMPLED_PACKS, SAMPLED_MEMBERS = 2, 3


def can_pack(policy: Policy, sequences: Sequence[TokenSequence], *, chunk_size: int) -> bool:
    """Tell whether packed rows give a policy's log-probs as rows do; a warning says why not.

    The first call compares a few of the sequences, both ways; later ones remember the answer. When
    memory runs out meanwhile, the answer is no until the next call.
    """
    if policy.packs is None:
        try:
            reason = _objection(policy, sequences, chunk_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        policy.packs = reason is None
        if reason is not None:
            log.warning(
                "%s is trained in rows and computes shared prompts again in each: %s. "
                "Set packing=False to leave this check out.",
                type(policy.base).__name__,
                reason,
            )
    return policy.packs


def packing_difference(
    policy: Policy, sequences: Sequence[TokenSequence], *, chunk_size: int
) -> float:
    """Return by how many nats log-probs of packed rows differ from those of rows, on average over
    a sample's tokens.
    """
    groups = policy.rotary.groups([len(s.token_ids) for s in sequences])
    packs, sample = _sample([sequences[i] for i in max(groups, key=len)])
    together = packed(packs, sample)
    found_R = _logprobs(policy, together, chunk_size)
    alone_R = torch.cat([_logprobs(policy, collate([s]), chunk_size) for s in sample])
    order_R = together.sequences_R.argsort(stable=True).to(found_R.device)
    return float((found_R[order_R] - alone_R).abs().mean())


def _objection(policy: Policy, sequences: Sequence[TokenSequence], chunk_size: int) -> str | None:
    tolerance = TOLERANCE.get(policy.dtype, TOLERANCE_BF16)
    try:
        difference = packing_difference(policy, sequences, chunk_size=chunk_size)
    except UnpackableError as error:
        return str(error)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        # a model's own code may trip over a packed row in any way
        if is_out_of_memory(e):
            raise
        return f"its forward pass over a packed row fails with {type(e).__name__}: {e}"
    if difference <= tolerance:
        return None
    return (
        f"log-probs of packed rows differ from those of rows by {difference:.3g} nats a token, "
        f"and {tolerance:g} are allowed"
    )


def _sample(sequences: Sequence[TokenSequence]) -> tuple[list[Pack], list[TokenSequence]]:
    """Return the packs with most members, cut to a few, and their sequences, numbered anew."""
    packs = sorted(shared_prefixes(sequences), key=lambda pack: -len(pack.members))
    sample: list[TokenSequence] = []
    cut = []
    for pack in packs[:SAMPLED_PACKS]:
        members = list(_spread(pack.members))
        places = range(len(sample), len(sample) + len(members))
        cut.append(attrs.evolve(pack, members=tuple(places)))
        sample += [sequences[m] for m in members]
    return cut, sample


def _spread(members: Sequence[int]) -> Iterator[int]:
    step = max(1, len(members) // SAMPLED_MEMBERS)
    yield from list(members[::step])[:SAMPLED_MEMBERS]


@torch.no_grad()
def _logprobs(policy: Policy, batch: MicroBatch, chunk_size: int) -> torch.Tensor:
    batch = batch.to(policy.device)
    return policy.logprobs(
        batch.ids_BS, batch.rows_R, batch.targets_R, chunk_size=chunk_size, layout=batch.layout
    )[0]
