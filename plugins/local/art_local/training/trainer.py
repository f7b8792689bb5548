"""Last stop: the optimizer steps over all sequences of a training step, all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from art_core.base.progress import progress_bar
from art_core.rl.batch import window_total
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossFunction, LossPreset
from art_core.rl.sequences import TokenSequence
from art_local.constraints.vocabulary import Vocabulary
from art_local.images.reader import shown
from art_local.training.allowed import with_allowed
from art_local.training.batches import MicroBatch, micro_batches
from art_local.training.checkpointing import Checkpointing
from art_local.training.critic import Critic
from art_local.training.finite import UpdateCheck
from art_local.training.losses import Tokens, entropy_coefficient, loss_function, token_losses
from art_local.training.memory import Budget
from art_local.training.optimizer import Optimizer, Update
from art_local.training.packing import can_pack, packed_batches, packed_tokens
from art_local.training.pass_size import PassSize, PassSizes
from art_local.training.phases import RL, SFT
from art_local.training.policy import Kept, Policy
from art_local.training.reference import Reference, under
from art_local.training.sums import Sums
from art_local.training.windows import Window, gathered, penalised, windows_of

log = logging.getLogger("art_local")
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
PACKED_TOKENS = {"cpu": 4096, "cuda": 16384}
CHUNK_ROWS = {"cpu": 256, "cuda": 512}
"""Unless asked otherwise. On a CPU smaller passes stay in its caches; gradients add up to the
same. A group that shares its prompt may take more tokens than others, so that it is not split.
"""

Turn = Callable[[], AbstractContextManager[Any]]
T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class _Step:
    """What one training step is run with."""

    loss: LossPreset
    function: LossFunction | None
    config: TrainConfig
    entropy_coef: float
    packing: bool
    budget: Budget
    longest: int
    bar: Any


class Trainer:
    """Moves a policy by GRPO steps. `turn` is entered around each piece of work on the device.

    With `deterministic` the passes of a step do not depend on the free memory. `vocabulary` is
    needed for answers that were sampled under a grammar.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        turn: Turn = nullcontext,
        progress: bool = True,
        deterministic: bool = False,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.policy = policy
        self._deterministic, self.vocabulary = deterministic, vocabulary
        self.optimizer = Optimizer(policy.trained(), policy.matrices())
        self._phase, self._parked = RL, dict[str, dict[str, Tensor]]()
        self.critic = Critic(policy.head.weight_VH.shape[1])
        self._pass_sizes = PassSizes(policy)
        self._turn = turn
        self._progress = progress

    def step(
        self,
        sequences: Sequence[TokenSequence],
        config: TrainConfig,
        *,
        label: str = "train",
        reference: Reference | None = None,
    ) -> dict[str, float]:
        """Take one step and refresh `policy.serving`; return its metrics under canonical keys.

        loss = sum over tokens of weight * token loss / `window_total`, over each whole optimizer
        step, however it is split into micro-batches. `reference` gives the weights of the KL
        penalty. Raises BackendError when memory runs out twice, or a gradient or the new weights
        are not finite; the weights then stay as they were.
        """
        self._enter(RL)
        with shown(self.policy.images, sequences) as found:
            windows = windows_of(found, config.grad_accumulation_sequences)
            return self._run(windows, config, label, reference)

    def fit(
        self, batches: Sequence[Sequence[TokenSequence]], config: TrainConfig, *, label: str = "sft"
    ) -> dict[str, float]:
        """Take an optimizer step on each batch by a config of supervised fine-tuning, with an
        optimizer state of its own; all else as `step` does.
        """
        self._enter(SFT)
        with shown(self.policy.images, [s for batch in batches for s in batch]) as found:
            rest = iter(found)
            windows = [Window(sequences=[*islice(rest, len(batch))]) for batch in batches]
            return self._run(windows, config, label, None)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state in each phase that has one, on the CPU."""
        states = {**self._parked, self._phase: self.optimizer.state()}
        return {phase: state for phase, state in states.items() if state or phase == RL}

    def load_states(self, states: Mapping[str, Mapping[str, Tensor]], source: Path) -> None:
        """Set the states; BackendError when one does not fit the model."""
        for phase in sorted(states, reverse=True):  # SFT, then RL
            self._enter(phase)
            self.optimizer.load(states[phase], source)

    def _enter(self, phase: str) -> None:
        """Continue with the optimizer state of a phase; the other waits in the CPU's memory."""
        if phase != self._phase:
            self._parked[self._phase] = self.optimizer.state()
            self.optimizer.load(self._parked.pop(phase, {}), Path(phase))
            self._phase = phase

    def _run(
        self,
        windows: list[Window],
        config: TrainConfig,
        label: str,
        reference: Reference | None,
    ) -> dict[str, float]:
        self.optimizer.use(config.optimizer)
        if not windows:
            return {"data/step_num_gradient_steps": 0.0}
        sequences = [s for window in windows for s in window.sequences]
        passes = 1 + (reference is not None)
        passes += len(windows) > 1 and self._phase == RL
        passes += config.critic
        tokens = passes * sum(len(s.token_ids) for s in sequences)
        packing = self._packing(sequences, config)
        with progress_bar(
            total=tokens, desc=label, unit="tok", leave=False, disable=not self._progress
        ) as bar:
            step = _Step(
                loss=config.loss,
                function=loss_function(config.loss),
                config=config,
                entropy_coef=entropy_coefficient(config, sequences),
                packing=packing,
                budget=self._budget(config, sequences, packing=packing),
                longest=max(len(s.token_ids) for s in sequences),
                bar=bar,
            )
            windows, measured = self._prepared(windows, step, reference)
            return measured | self._moved(windows, step)

    def _prepared(
        self, windows: list[Window], step: _Step, reference: Reference | None
    ) -> tuple[list[Window], dict[str, float]]:
        """Compute what the losses need beyond the sequences: nothing, by default."""
        if step.loss.surrogate == "likelihood":
            return windows, {}
        if len(windows) > 1:
            own = self._logprobs_now(windows, step)
            windows = [
                attrs.evolve(w, own_logprobs_N=own_N) for w, own_N in zip(windows, own, strict=True)
            ]
        measured: dict[str, float] = {}
        if step.config.critic:
            hidden = self._now(windows, step, self._hidden)
            windows, measured = self.critic.targets(windows, hidden, step.config)
        if reference is None:
            return windows, measured
        with under(self.policy, reference):
            found = self._logprobs_now(windows, step)
        windows, kl = penalised(windows, found, step.config.kl_penalty_coef)
        return windows, {**measured, "loss/kl_div": kl}

    def _moved(self, windows: Sequence[Window], step: _Step) -> dict[str, float]:
        before: tuple[Kept, dict[str, Tensor]] | None = None
        sums, norms, value_losses = Sums(), [], []
        metrics: dict[str, float] = {}
        critic = self.critic.state()
        try:
            for number, window in enumerate(windows):
                part = self._within(
                    partial(self._accumulated, window, step), step, self.policy.checkpointing
                )
                sums.add(part)
                if number + 1 == len(windows):
                    # whatever may fail comes before the weights move
                    metrics = sums.measured(step.loss)
                elif before is None:
                    before = self._once(self._state, step)
                if window.values is not None:
                    value_losses.append(self.critic.step(window.values, step.config))
                norms.append(self._once(partial(self._optimizer_step, window, step), step))
        except BaseException as error:
            if step.config.critic:
                self.critic.load(critic, Path("before the step"))
            if before is not None:
                self._put_back(before, error)
            raise
        return {
            **metrics,
            "loss/grad_norm": sum(norms) / len(norms),
            "loss/learning_rate": step.config.learning_rate,
            **({"loss/value": sum(value_losses) / len(value_losses)} if value_losses else {}),
            **({"loss/entropy_coef": step.entropy_coef} if step.config.entropy_coef else {}),
            "data/step_num_gradient_steps": float(len(norms)),
        }

    def _put_back(self, before: tuple[Kept, dict[str, Tensor]], cause: BaseException) -> None:
        """Return to the weights before the step. What fails here does not hide the cause."""
        try:
            self.policy.put_back(before[0])
            self.optimizer.load(before[1], Path("before the step"))
        except Exception as error:
            log.error("the weights before the step could not be put back: %s", error)
            cause.add_note(f"The weights before the step could not be put back: {error}")

    def _optimizer_step(self, window: Window, step: _Step) -> float:
        """Take an optimizer step, or none: its weights are checked before the parameters move."""
        config = step.config
        check = UpdateCheck(config.learning_rate)

        def accept(updates: Iterator[Update]) -> None:
            with self.policy.proposing(check.weights(updates)):
                check.finish(self.policy, window.sequences[0].token_ids)

        with self._turn():
            return self.optimizer.step(
                config.learning_rate, config.max_grad_norm, accept, config.weight_decay
            )

    def _state(self) -> tuple[Kept, dict[str, Tensor]]:
        state = self.optimizer.state()
        return self.policy.kept(), {name: tensor.clone() for name, tensor in state.items()}

    def _accumulated(self, window: Window, step: _Step) -> Sums:
        sums = Sums()
        total = window_total(step.loss, window.sequences)
        for batch in self._batches(window, step):
            filled, engine_R = window.filled(batch)
            with self._turn():
                self._forward_backward(filled, engine_R, total, step, sums)
        return sums

    def _forward_backward(
        self, batch: MicroBatch, engine_R: Tensor | None, total: float, step: _Step, sums: Sums
    ) -> None:
        batch = batch.to(self.policy.device)
        bonus = step.entropy_coef > 0
        logprobs_R, entropies_R = self._logprobs(batch, step, entropy_gradient=bonus)
        tokens = token_losses(
            step.loss,
            Tokens(
                logprobs_R=logprobs_R,
                old_logprobs_R=batch.old_logprobs_R,
                engine_logprobs_R=None if engine_R is None else engine_R.to(logprobs_R.device),
                advantages_R=batch.advantages_R,
                weights_R=batch.weights_R,
                sequences_R=batch.sequences_R,
                entropies_R=entropies_R.detach(),
            ),
            step.function,
        )
        losses_R = tokens.losses_R - step.entropy_coef * entropies_R if bonus else tokens.losses_R
        loss = (losses_R * batch.weights_R).sum() / total
        loss.backward()  # type: ignore[no-untyped-call]
        sums.loss.append(loss.detach())
        sums.entropies.append(entropies_R.detach())
        sums.tokens.append(attrs.evolve(tokens, losses_R=tokens.losses_R.detach()))

    def _logprobs_now(self, windows: Sequence[Window], step: _Step) -> list[Tensor]:
        """Return the log-probs [N] of each window's tokens under the weights as they are now."""

        def values(batch: MicroBatch) -> Tensor:
            with torch.no_grad():
                return self._logprobs(batch, step)[0]

        return self._now(windows, step, values)

    def _hidden(self, batch: MicroBatch) -> Tensor:
        return self.policy.hidden(batch.ids_BS, batch.rows_R, layout=batch.layout)

    def _now(
        self, windows: Sequence[Window], step: _Step, compute: Callable[[MicroBatch], Tensor]
    ) -> list[Tensor]:
        """Return what is computed for each window's loss tokens under the weights as they are."""

        def values(batch: MicroBatch) -> Tensor:
            with self._turn():
                return compute(batch.to(self.policy.device))

        def of(window: Window) -> Tensor:
            return gathered(window.sequences, self._batches(window, step), values)

        return [self._within(partial(of, window), step) for window in windows]

    def _batches(self, window: Window, step: _Step) -> Iterator[MicroBatch]:
        lengths = [len(s.token_ids) for s in window.sequences]
        for group in self.policy.rotary.groups(lengths):
            for batch in self._batches_of([window.sequences[i] for i in group], step):
                places_R = torch.tensor(group)[batch.sequences_R]
                placed = attrs.evolve(batch, sequences_R=places_R)
                yield with_allowed(placed, window.sequences, self.vocabulary)
                done = sum(lengths[place] for place in set(places_R.tolist()))
                step.bar.update(min(done, step.bar.total - step.bar.n))

    def _batches_of(self, sequences: Sequence[TokenSequence], step: _Step) -> Iterator[MicroBatch]:
        if not step.packing:
            return micro_batches(sequences, step.budget.tokens)
        joined = step.config.packed_sequence_length or self._row_tokens(step.config)
        joined //= 1 + step.budget.halved
        return packed_batches(sequences, step.budget.tokens, joined=joined)

    def _packing(self, sequences: Sequence[TokenSequence], config: TrainConfig) -> bool:
        if not config.packing:
            return False
        with self._turn():
            return can_pack(self.policy, sequences, chunk_size=self._chunk(config))

    def _logprobs(
        self, batch: MicroBatch, step: _Step, *, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        return self.policy.logprobs(
            batch.ids_BS,
            batch.rows_R,
            batch.targets_R,
            chunk_size=self._chunk(step.config),
            layout=batch.layout,
            entropy_gradient=entropy_gradient,
            allowed=batch.allowed,
        )

    def _within(
        self, work: Callable[[], T], step: _Step, checkpointing: Checkpointing | None = None
    ) -> T:
        return step.budget.within(
            work,
            undo=self.optimizer.drop_gradients,
            longest=step.longest,
            checkpointing=checkpointing,
        )

    def _once(self, work: Callable[[], T], step: _Step) -> T:
        """Run work that smaller pieces would not help."""
        budget = attrs.evolve(step.budget, once=True)
        return budget.within(work, undo=self.optimizer.drop_gradients, longest=step.longest)

    def _budget(
        self, config: TrainConfig, sequences: Sequence[TokenSequence], *, packing: bool
    ) -> Budget:
        setting, tokens = "micro_batch_tokens", self._row_tokens(config)
        if packing and (config.packed_sequence_length or not config.micro_batch_tokens):
            setting, usual = "packed_sequence_length", PACKED_TOKENS.get(self.policy.device.type)
            tokens = config.packed_sequence_length or usual or 16384
        settings = {setting: tokens, "logprob_calculation_chunk_size": self._chunk(config)}
        lengths = [len(s.token_ids) for s in sequences]
        wanted = PassSize(
            tokens=tokens,
            longest=max(lengths),
            total=packed_tokens(sequences) if packing else sum(lengths),
            chunk_rows=self._chunk(config),
        )
        fitting = self._pass_sizes.fitting_tokens(wanted)
        return Budget(
            tokens=tokens if self._deterministic else fitting,
            setting=setting,
            settings=settings,
            device=self.policy.device,
            once=self._deterministic,
        )

    def _row_tokens(self, config: TrainConfig) -> int:
        return config.micro_batch_tokens or MICRO_BATCH_TOKENS.get(self.policy.device.type, 8192)

    def _chunk(self, config: TrainConfig) -> int:
        return config.logprob_calculation_chunk_size or CHUNK_ROWS.get(self.policy.device.type, 512)
