"""Last stop: one optimizer step over all sequences of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor
from tqdm import tqdm

from art_core.errors import BackendError
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.training.batches import MicroBatch, micro_batches
from art_local.training.losses import ratio_metrics, token_losses
from art_local.training.optimizer import Optimizer
from art_local.training.policy import Policy

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
CHUNK_ROWS = {"cpu": 256, "cuda": 512}
"""Unless asked otherwise. On a CPU smaller passes stay in its caches; gradients add up to the
same.
"""

Turn = Callable[[], AbstractContextManager[Any]]


@attrs.frozen(kw_only=True, eq=False)
class _Sums:
    """What micro-batches add up to: weighted loss, entropies [N] and log-ratios [N] of all
    tokens.
    """

    loss: list[Tensor] = attrs.field(factory=list)
    entropies: list[Tensor] = attrs.field(factory=list)
    log_ratios: list[Tensor] = attrs.field(factory=list)


class Trainer:
    """Moves a policy by GRPO steps. `turn` is entered around each piece of work on the device."""

    def __init__(self, policy: Policy, *, turn: Turn = nullcontext, progress: bool = True) -> None:
        self.policy = policy
        self.optimizer = Optimizer(policy.trained())
        self._turn = turn
        self._progress = progress

    def step(
        self, sequences: Sequence[TokenSequence], config: TrainConfig, *, label: str = "train"
    ) -> dict[str, float]:
        """Take one step and refresh `policy.serving`; return its metrics under canonical keys.

        loss = sum over tokens of weight * token loss / sum of weights, over the whole step, however
        it is split into micro-batches. Raises BackendError when memory runs out or the gradient is
        not finite; the weights then stay as they were.
        """
        if not sequences:
            return {"data/step_num_gradient_steps": 0.0}
        sums = _Sums()
        try:
            self._accumulate(sequences, config, sums, label)
            with self._turn():
                grad_norm = self.optimizer.step(config.learning_rate, config.max_grad_norm)
                self.policy.refresh()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            self.optimizer.drop_gradients()
            if not _is_out_of_memory(error):
                raise
            raise self._out_of_memory(sequences, config) from error
        return {
            "loss/train": float(torch.stack(sums.loss).sum()),
            "loss/entropy": float(torch.cat(sums.entropies).mean()),
            "loss/grad_norm": grad_norm,
            "loss/learning_rate": config.learning_rate,
            **ratio_metrics(sums.log_ratios, config.loss),
            "data/step_num_gradient_steps": 1.0,
        }

    def _accumulate(
        self, sequences: Sequence[TokenSequence], config: TrainConfig, sums: _Sums, label: str
    ) -> None:
        total_weight = sum(s.weight * s.num_trainable for s in sequences)
        tokens = sum(len(s.token_ids) for s in sequences)
        bar = tqdm(total=tokens, desc=label, unit="tok", leave=False, disable=not self._progress)
        with bar:
            for batch in micro_batches(sequences, self._budget(config)):
                with self._turn():
                    self._forward_backward(batch.to(self.policy.device), config, total_weight, sums)
                bar.update(min(batch.ids_BS.numel(), tokens - bar.n))

    def _forward_backward(
        self, batch: MicroBatch, config: TrainConfig, total_weight: float, sums: _Sums
    ) -> None:
        logprobs_R, entropies_R = self.policy.logprobs(
            batch.ids_BS,
            batch.rows_R,
            batch.targets_R,
            chunk_size=self._chunk(config),
        )
        tokens = token_losses(config.loss, logprobs_R, batch.old_logprobs_R, batch.advantages_R)
        loss = (tokens.losses_R * batch.weights_R).sum() / total_weight
        loss.backward()  # type: ignore[no-untyped-call]
        sums.loss.append(loss.detach())
        sums.entropies.append(entropies_R)
        sums.log_ratios.append(tokens.log_ratios_R)

    def _budget(self, config: TrainConfig) -> int:
        device = self.policy.device.type
        return config.micro_batch_tokens or MICRO_BATCH_TOKENS.get(device, 8192)

    def _chunk(self, config: TrainConfig) -> int:
        return config.logprob_calculation_chunk_size or CHUNK_ROWS.get(self.policy.device.type, 512)

    def _out_of_memory(
        self, sequences: Sequence[TokenSequence], config: TrainConfig
    ) -> BackendError:
        longest = max(len(s.token_ids) for s in sequences)
        return BackendError(
            f"out of memory on {self.policy.device} in a step of {len(sequences)} "
            "sequences, the longest of "
            f"{longest} tokens, with at most {max(self._budget(config), longest)} tokens at once; "
            "the weights stay as they were",
            f"Lower micro_batch_tokens (now {self._budget(config)}) or "
            f"logprob_calculation_chunk_size (now {self._chunk(config)}), "
            "or let rollouts be shorter.",
        )


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
        or "not enough memory" in text
    )
