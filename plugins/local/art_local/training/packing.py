"""Packing: sequences with a common prefix become one row in which the shared tokens appear once.

Shared prefixes are found from token ids only. A pack is one prefix and one segment per sequence. It
gives the same results as padded rows if each token attends to its own sequence only and keeps its
position (see `Layout`). This is checked once for each policy.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from art_core.rl.sequences import TokenSequence
from art_local.models.device_memory import is_out_of_memory
from art_local.training.attention import UnpackableError
from art_local.training.batches import MicroBatch, micro_batches
from art_local.training.layout import Shape, layout_of

if TYPE_CHECKING:
    from art_local.training.policy import Policy

log = logging.getLogger("art_local")

SLACK = 1.25
"""A sequence longer than the budget is packed with others up to this multiple of its tokens."""
TOLERANCE = {torch.float32: 1e-3}
TOLERANCE_BF16 = 0.2
"""Maximum mean difference of log-probs in nats. For SmolLM2-135M, packed rows differ from padded
ones by 3e-6 in fp32 and by 0.05 in bf16 (as much as two correct attentions over the same rows); a
mask that includes other sequences, by 1.1.
"""
SAMPLED_PACKS, SAMPLED_MEMBERS, SAMPLED_TOKENS = 2, 2, 1024


@attrs.frozen(kw_only=True)
class Pack:
    """Indices of sequences in the step that share their first `prefix` tokens."""

    prefix: int
    members: tuple[int, ...]

    def shape(self, sequences: Sequence[TokenSequence]) -> Shape:
        """Return the lengths of the pack's prefix and segments."""
        own = (len(sequences[m].token_ids) - self.prefix for m in self.members)
        return Shape(prefix=self.prefix, segments=tuple(own))


def packed_batches(
    sequences: Sequence[TokenSequence], budget: int, *, joined: int | None = None
) -> Iterator[MicroBatch]:
    """Yield the sequences as packed micro-batches of at most `budget` tokens, without padding.

    Packs are combined up to `joined` tokens, by default the budget. A pack over the budget is
    split, with its prefix in each part. A sequence longer than the budget is packed with others
    that add at most a quarter to it.
    """
    packs = [
        part
        for pack in shared_prefixes(sequences)
        for part in _split(pack, [len(s.token_ids) for s in sequences], budget)
    ]
    tokens = [pack.shape(sequences).tokens for pack in packs]
    for places in _first_fit(tokens, min(budget, joined or budget)):
        yield packed([packs[i] for i in places], sequences)


def packed_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the tokens of all sequences, each shared prefix once."""
    return sum(pack.shape(sequences).tokens for pack in shared_prefixes(sequences))


def packed(packs: Sequence[Pack], sequences: Sequence[TokenSequence]) -> MicroBatch:
    """Put packs into one row [1, S]. Each sequence whose next token has a loss refers to the hidden
    state of a shared token.
    """
    ids: list[int] = []
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for pack in packs:
        base = len(ids)
        ids += sequences[pack.members[0]].token_ids[: pack.prefix]
        for member in pack.members:
            shift = len(ids) - pack.prefix
            ids += sequences[member].token_ids[pack.prefix :]
            parts.append(_loss_rows(sequences[member], pack.prefix, base, shift))
    rows, targets, values, counts = zip(*parts, strict=True)
    old_R, advantages_R, weights_R = torch.cat(values).unbind(1)
    members = torch.tensor([member for pack in packs for member in pack.members])
    return MicroBatch(
        ids_BS=torch.tensor(ids)[None],
        rows_R=torch.cat(rows),
        targets_R=torch.cat(targets),
        old_logprobs_R=old_R,
        advantages_R=advantages_R,
        weights_R=weights_R,
        sequences_R=members.repeat_interleave(torch.stack(counts)),
        layout=layout_of(pack.shape(sequences) for pack in packs),
    )


def _loss_rows(
    sequence: TokenSequence, prefix: int, base: int, shift: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows [R], targets [R], values [R, 3] and R of a sequence whose prefix starts at `base`
    and whose later token t is at `shift` + t.
    """
    at_R = torch.tensor(sequence.trainable[1:], dtype=torch.bool).nonzero()[:, 0]
    values_R3 = torch.empty(len(at_R), 3)
    values_R3[:, 0] = torch.tensor(sequence.logprobs[1:], dtype=torch.float32)[at_R]
    values_R3[:, 1] = torch.tensor(sequence.advantages[1:], dtype=torch.float32)[at_R]
    values_R3[:, 2] = sequence.weight
    return (
        at_R + torch.where(at_R < prefix, base, shift),
        torch.tensor(sequence.token_ids[1:], dtype=torch.long)[at_R],
        values_R3,
        torch.tensor(len(at_R)),
    )


@attrs.frozen(kw_only=True)
class _Found:
    """Sequences with a common prefix, the best packs of them, and the tokens that these save."""

    members: list[int]
    packs: list[Pack]
    saved: int = 0


def shared_prefixes(sequences: Sequence[TokenSequence]) -> list[Pack]:
    """Group sequences into packs so that most tokens are saved; a sequence that shares nothing is a
    pack of its own.

    In lexicographic order the sequences are the leaves of a tree whose inner nodes are their common
    prefixes. From the leaves upward, each node takes those of its children that save more at its
    own, shorter prefix than by themselves.
    """
    if not sequences:
        return []
    # big-endian bytes compare as the ids do, and fast
    keys = [_big_endian(s.token_ids) for s in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    open_nodes: list[tuple[int, list[_Found]]] = [(0, [])]
    for place, member in enumerate(order):
        after = order[place + 1] if place + 1 < len(order) else None
        depth = 0 if after is None else _common(keys[member], keys[after])
        found = _Found(members=[member], packs=[Pack(prefix=0, members=(member,))])
        while open_nodes[-1][0] > depth:
            inner, children = open_nodes.pop()
            found = _closed(inner, [*children, found])
        if open_nodes[-1][0] < depth:
            open_nodes.append((depth, []))
        open_nodes[-1][1].append(found)
    return [pack for found in open_nodes[0][1] for pack in found.packs]


def _closed(depth: int, children: Sequence[_Found]) -> _Found:
    joining: list[_Found] = []
    apart: list[_Found] = []
    for child in children:
        (joining if depth * len(child.members) > child.saved else apart).append(child)
    members = sorted(member for c in joining for member in c.members)
    gain = depth * (len(members) - 1)
    packs = [Pack(prefix=depth, members=tuple(members))]
    if gain <= sum(c.saved for c in joining):
        packs, apart, gain = [], list(children), 0
    return _Found(
        members=[member for c in children for member in c.members],
        packs=packs + [pack for c in apart for pack in c.packs],
        saved=gain + sum(c.saved for c in apart),
    )


def _big_endian(ids: Sequence[int]) -> bytes:
    numbers = array("q", ids)
    numbers.byteswap()
    return numbers.tobytes()


def _common(one: bytes, other: bytes) -> int:
    """Return how many ids two keys begin with in common."""
    size = min(len(one), len(other))
    differing = int.from_bytes(one[:size]) ^ int.from_bytes(other[:size])
    return (size - (differing.bit_length() + 7) // 8) // 8


def _split(pack: Pack, lengths: Sequence[int], budget: int) -> Iterator[Pack]:
    """Yield a pack's parts, longest sequences first, so that equal lengths are neighbours."""
    ordered = sorted(pack.members, key=lambda m: -lengths[m])
    part: list[int] = []
    tokens = limit = 0
    for member in ordered:
        own = lengths[member] - pack.prefix
        if part and tokens + own > limit:
            yield _part(pack.prefix, part)
            part = []
        if not part:
            tokens = pack.prefix
            limit = budget if lengths[member] <= budget else int(SLACK * lengths[member])
        part.append(member)
        tokens += own
    yield _part(pack.prefix, part)


def _part(prefix: int, members: Sequence[int]) -> Pack:
    return Pack(prefix=prefix if len(members) > 1 else 0, members=tuple(members))


def _first_fit(tokens: Sequence[int], limit: int) -> list[list[int]]:
    """Put packs into micro-batches of at most `limit` tokens, the largest first, each into the
    first one with room; a larger pack is a micro-batch of its own.
    """
    batches: list[list[int]] = []
    filled: list[int] = []
    for pack in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        room = (i for i, used in enumerate(filled) if used + tokens[pack] <= limit)
        place = next(room, None)
        if place is None:
            batches.append([pack])
            filled.append(tokens[pack])
        else:
            batches[place].append(pack)
            filled[place] += tokens[pack]
    return batches


def can_pack(policy: Policy, sequences: Sequence[TokenSequence], *, chunk_size: int) -> bool:
    """Return whether packed rows give a policy's log-probs as padded rows do; if not, log a warning
    with the reason.

    The first call compares a few of the sequences; later calls reuse the result. If memory runs
    out, the result is False until the next call.
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
                "%s is trained in padded rows, each of which computes a shared prompt again: %s. "
                "Set packing=False to leave this check out.",
                type(policy.base).__name__,
                reason,
            )
    return policy.packs


def packing_difference(
    policy: Policy, sequences: Sequence[TokenSequence], *, chunk_size: int
) -> float:
    """Return the mean difference in nats between log-probs of packed and padded rows, over the
    tokens of a sample.
    """
    groups = policy.rotary.groups([len(s.token_ids) for s in sequences])
    packs, sample = _sample([sequences[i] for i in max(groups, key=len)])
    together = packed(packs, sample)
    found_R = _logprobs(policy, together, chunk_size)
    rows = list(micro_batches(sample, SAMPLED_TOKENS))
    alone_R = torch.cat([_logprobs(policy, batch, chunk_size) for batch in rows])
    places_R = torch.cat([batch.sequences_R for batch in rows])
    found_R = found_R[together.sequences_R.argsort(stable=True).to(found_R.device)]
    alone_R = alone_R[places_R.argsort(stable=True).to(found_R.device)]
    return float((found_R - alone_R).abs().mean())


def _objection(policy: Policy, sequences: Sequence[TokenSequence], chunk_size: int) -> str | None:
    tolerance = TOLERANCE.get(policy.dtype, TOLERANCE_BF16)
    try:
        difference = packing_difference(policy, sequences, chunk_size=chunk_size)
    except UnpackableError as error:
        return str(error)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        # a model's code may fail on a packed row with any error
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
    """Return the packs with most members, reduced to a few, and their sequences, renumbered."""
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
