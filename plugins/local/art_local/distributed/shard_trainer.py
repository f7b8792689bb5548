"""The trainer of one rank: it computes its share of each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import BackendError, ConfigError
from art_core.rl.batch import window_total
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.distributed.ranks import Ranks
from art_local.distributed.sharding import ShardedPolicy
from art_local.distributed.shares import balanced_shares
from art_local.training.batches import MicroBatch
from art_local.training.finite import not_finite
from art_local.training.losses import TokenLosses
from art_local.training.memory import Budget
from art_local.training.optimizer import Optimizer
from art_local.training.sums import Sums
from art_local.training.trainer import Trainer
from art_local.training.windows import Window, loss_tokens, token_places

Report = Callable[[int], None]


def ignored(_: int) -> None:
    """Do nothing with a report."""


class ShardTrainer(Trainer):
    """A trainer whose optimizer steps are split over ranks by sequences.

    Ranks run equally many passes, since each pass gathers weights from all: one with fewer
    micro-batches adds passes that count for nothing. The loss is divided by the whole step's total
    and gradients are summed, so a step is that of one process. `report` is called with the tokens
    of each micro-batch.
    """

    def __init__(self, policy: ShardedPolicy, report: Report = ignored) -> None:
        super().__init__(policy, progress=False)
        self.shards, self._ranks = policy, policy.ranks
        self._report = report
        self.optimizer = Optimizer(policy.local, clip=partial(_clip, self._ranks))

    def _run(
        self, windows: list[Window], config: TrainConfig, label: str, reference: Any
    ) -> dict[str, float]:
        check_can_split(config, [s for window in windows for s in window.sequences])
        return super()._run(windows, config, label, reference)

    def _packing(self, sequences: Sequence[TokenSequence], config: TrainConfig) -> bool:
        # the check's passes are those of all ranks; rounding must not make them differ
        return not self._ranks.any(true=not super()._packing(sequences, config))

    def _budget(
        self, config: TrainConfig, sequences: Sequence[TokenSequence], *, packing: bool
    ) -> Budget:
        # a pass cannot be run again by one rank only
        return attrs.evolve(super()._budget(config, sequences, packing=packing), once=True)

    def _own(self, window: Window) -> range:
        lengths = [len(s.token_ids) for s in window.sequences]
        return balanced_shares(lengths, self._ranks.count)[self._ranks.rank]

    def _batches(self, window: Window, step: Any) -> Iterator[MicroBatch]:
        """Yield the micro-batches of this rank's share."""
        own = self._own(window)
        part = Window(sequences=[window.sequences[place] for place in own])
        places = torch.tensor(own, dtype=torch.long)
        for batch in super()._batches(part, step):
            yield attrs.evolve(batch, sequences_R=places[batch.sequences_R])

    def _passes(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch | None]:
        """Yield micro-batches, and then None as often as ranks with more have passes."""
        own = list(batches)
        idle = self._ranks.most(len(own)) - len(own)  # before the first pass, in which ranks meet
        for batch in own:
            yield batch
            self._report(batch.ids_BS.numel())
        yield from [None] * idle

    def _accumulated(self, window: Window, step: Any) -> Sums:
        sums = Sums()
        # FSDP2 takes the mean over ranks
        total = window_total(step.loss, window.sequences) / self._ranks.count
        for batch in self._passes(self._batches(window, step)):
            filled, engine_R = (_idle(), None) if batch is None else window.filled(batch)
            into = Sums() if batch is None else sums
            with self._turn():
                self._forward_backward(filled, engine_R, total, step, into)
        return self._of_all(sums)

    def _of_all(self, sums: Sums) -> Sums:
        """Return the sums of all ranks."""
        loss = torch.stack(sums.loss).sum() if sums.loss else torch.zeros(())
        names = [field.name for field in attrs.fields(TokenLosses)]
        own = [
            torch.cat([getattr(each, name) for each in sums.tokens] or [torch.zeros(0)])
            for name in names
        ]
        entropies = torch.cat(sums.entropies or [torch.zeros(0)])
        *tokens, entropies = self._ranks.everyones([*own, entropies])
        found = dict(zip(names, tokens, strict=True))
        found["clipped_R"] = found["clipped_R"].bool()
        mean = self._ranks.total(loss).float() / self._ranks.count
        return Sums(loss=[mean], entropies=[entropies], tokens=[TokenLosses(**found)])

    def _now(
        self, windows: Sequence[Window], step: Any, compute: Callable[[MicroBatch], Tensor]
    ) -> list[Tensor]:
        return [
            self._within(partial(self._gathered, window, step, compute), step) for window in windows
        ]

    def _gathered(
        self, window: Window, step: Any, compute: Callable[[MicroBatch], Tensor]
    ) -> Tensor:
        """Return values [N] of all loss tokens, of which this rank computes its share."""
        found_N = torch.full((sum(map(loss_tokens, window.sequences)),), torch.nan)
        for batch in self._passes(self._batches(window, step)):
            values = compute((_idle() if batch is None else batch).to(self.policy.device))
            if batch is not None:
                found_N[token_places(window.sequences, batch)] = values.float().cpu()
        counts = [loss_tokens(s) for s in window.sequences]
        own = self._own(window)
        start = sum(counts[: own.start]) if own else 0
        length = sum(counts[place] for place in own)
        # shares are neighbours, in the order of the ranks
        return self._ranks.everyones([found_N[start : start + length]])[0]

    def _optimizer_step(self, window: Window, step: Any) -> float:
        """Take an optimizer step, and take it back if its weights are of no use."""
        config = step.config
        self.shards.take_gradients()
        before = self._state()
        norm = self.optimizer.step(
            config.learning_rate, config.max_grad_norm, None, config.weight_decay
        )
        odd = not_finite(self.shards.local) or not_finite(self.optimizer.moments(), math.inf)
        finite = self.shards.is_finite_on(window.sequences[0].token_ids[:16])
        if self._ranks.any(true=bool(odd) or not finite):
            self.shards.put_back(before[0])
            self.optimizer.load(before[1], Path("before the step"))
            raise BackendError(
                "the step does not count: after it weights, moments or log-probs are not finite or "
                "too large; the weights stay as they were",
                f"Lower learning_rate (now {config.learning_rate:g}).",
            )
        return norm


def check_can_split(config: TrainConfig, sequences: Iterable[TokenSequence]) -> None:
    """Raise ConfigError for a step that several devices cannot take."""
    problem = None
    if config.critic:
        problem = "advantage_baseline='value' trains a critic"
    elif config.optimizer != "adamw":
        problem = f"optimizer={config.optimizer!r} has a state that cannot be split"
    elif any(s.images for s in sequences):
        problem = "the attempts have images"
    if problem:
        raise ConfigError(
            f"{problem}, and this model is trained on several devices (trainer_devices)",
            "Leave that out, or train on one device.",
        )


def _idle() -> MicroBatch:
    """Return a micro-batch that counts for nothing."""
    none, one = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    return MicroBatch(
        ids_BS=torch.zeros(1, 2, dtype=torch.long),
        rows_R=one,
        targets_R=one,
        old_logprobs_R=none,
        advantages_R=none,
        weights_R=none,
        sequences_R=one,
    )


def _clip(ranks: Ranks, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Clip the norm of gradients of which each rank holds a part; return the whole norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    own = sum((g.double().square().sum() for g in gradients), torch.zeros((), device=ranks.device))
    norm = ranks.total(own).sqrt()
    factor = min(1.0, most / (float(norm) + 1e-6))
    for gradient in gradients:
        gradient.mul_(factor)
    return norm
