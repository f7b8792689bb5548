"""The sequences of one optimizer step, with values computed for their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs
import torch
from torch import Tensor

from art_core.rl.batch import optimizer_steps
from art_core.rl.sequences import TokenSequence
from art_local.training.batches import MicroBatch


@attrs.frozen(kw_only=True, eq=False)
class ValueTargets:
    """Data of a critic's step: hidden states [N, H] before the loss tokens, values [N] and returns
    [N].
    """

    hidden_NH: Tensor
    old_N: Tensor
    returns_N: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Window:
    """Sequences of one optimizer step. If given, these values [N] of their loss tokens, sequence by
    sequence, replace those of the sequences: `own_logprobs_N`, the policy's log-probs before the
    first optimizer step, and `advantages_N`. `values` are for the critic, if there is one.
    """

    sequences: Sequence[TokenSequence]
    own_logprobs_N: Tensor | None = None
    advantages_N: Tensor | None = None
    values: ValueTargets | None = None

    def filled(self, batch: MicroBatch) -> tuple[MicroBatch, Tensor | None]:
        """Return a micro-batch of this window with those values, and the engine's log-probs [R] if
        the old ones were replaced.
        """
        if self.own_logprobs_N is None and self.advantages_N is None:
            return batch, None
        places_R = token_places(self.sequences, batch)
        engine_R = None
        if self.advantages_N is not None:
            batch = attrs.evolve(batch, advantages_R=self.advantages_N[places_R])
        if self.own_logprobs_N is not None:
            engine_R = batch.old_logprobs_R
            batch = attrs.evolve(batch, old_logprobs_R=self.own_logprobs_N[places_R])
        return batch, engine_R


def windows_of(sequences: Sequence[TokenSequence], size: int | None) -> list[Window]:
    """Split sequences into optimizer steps of `size` sequences, all in one by default."""
    return [Window(sequences=step) for step in optimizer_steps(sequences, size)]


def token_places(sequences: Sequence[TokenSequence], batch: MicroBatch) -> Tensor:
    """Return for each token [R] of a micro-batch its index among all loss tokens [N] of the
    sequences. Tokens of one sequence are in order in a micro-batch.
    """
    counts = torch.tensor([loss_tokens(s) for s in sequences])
    starts = counts.cumsum(0) - counts
    order_R = batch.sequences_R.argsort(stable=True)
    owners_R = batch.sequences_R[order_R]
    first_R = torch.searchsorted(owners_R, owners_R)
    places_R = torch.empty_like(order_R)
    places_R[order_R] = starts[owners_R] + torch.arange(len(owners_R)) - first_R
    return places_R


def loss_tokens(sequence: TokenSequence) -> int:
    """Return the number of a sequence's tokens with a loss; its first token never has one."""
    return sum(sequence.trainable[1:])


def engine_logprobs(sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the engine's log-probs [N] of all loss tokens."""
    return of_loss_tokens(sequences, [s.logprobs for s in sequences])


def of_loss_tokens(sequences: Sequence[TokenSequence], values: Sequence[Sequence[float]]) -> Tensor:
    """Return the values [N] of the loss tokens among those of all tokens."""
    return torch.tensor(
        [
            value
            for s, each in zip(sequences, values, strict=True)
            for value, trainable in zip(each[1:], s.trainable[1:], strict=True)
            if trainable
        ],
        dtype=torch.float32,
    )


def token_advantages(sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the advantages [N] of all loss tokens."""
    return of_loss_tokens(sequences, [s.advantages for s in sequences])


def gathered(
    sequences: Sequence[TokenSequence],
    batches: Iterable[MicroBatch],
    values: Callable[[MicroBatch], Tensor],
) -> Tensor:
    """Return values [N] or [N, H] of all loss tokens, computed micro-batch by micro-batch."""
    found = torch.empty(0)
    for batch in batches:
        part = values(batch).float().cpu()
        if not len(found):
            found = torch.full((sum(map(loss_tokens, sequences)), *part.shape[1:]), torch.nan)
        found[token_places(sequences, batch)] = part
    return found


def penalised(
    windows: Sequence[Window], reference: Sequence[Tensor], coefficient: float
) -> tuple[list[Window], float]:
    """Add a KL penalty to the advantages; return the windows, and the mean KL over all tokens.

    A token's advantage changes by coefficient * (mean - kl), where kl = log(old / reference) of the
    sampled token: an unbiased estimate of KL(policy || reference), whose mean over the step is
    subtracted so that the advantages keep theirs. A token without a known old log-prob is ignored.
    """
    olds = [
        engine_logprobs(w.sequences) if w.own_logprobs_N is None else w.own_logprobs_N
        for w in windows
    ]
    kls = [old_N - ref_N for old_N, ref_N in zip(olds, reference, strict=True)]
    every = torch.cat(kls)
    counted = every[every.isfinite()].double()
    mean = float(counted.mean()) if len(counted) else 0.0
    changed = [
        attrs.evolve(
            window,
            advantages_N=(
                token_advantages(window.sequences)
                if window.advantages_N is None
                else window.advantages_N
            )
            + coefficient * torch.where(kl_N.isfinite(), mean - kl_N, 0.0),
        )
        for window, kl_N in zip(windows, kls, strict=True)
    ]
    return changed, mean
