"""The trainer of a session whose model is trained by ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from art_core.base.progress import progress_bar
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.distributed.group import Group
from art_local.distributed.rank import BASE
from art_local.distributed.shard_trainer import check_can_split
from art_local.training.phases import OPTIMIZERS, PARTS
from art_local.training.policy import LORA, Policy
from art_local.training.reference import Reference

Turn = Callable[[], AbstractContextManager[Any]]


class GroupTrainer:
    """Takes steps in a group of ranks; `policy` has the adapter of the last one, to serve and store
    it.

    After each step the ranks write adapter and optimizer into `directory`. When they die, `start`
    makes a new group, which continues from there.
    """

    def __init__(
        self,
        policy: Policy,
        start: Callable[[], Group],
        directory: Path,
        *,
        turn: Turn = nullcontext,
        progress: bool = True,
    ) -> None:
        self.policy = policy
        self._progress = progress
        self.group: Group | None = None
        self._start, self._directory, self._turn = start, directory, turn
        self._states: Path | None = None
        self._number = 0
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def step(
        self,
        sequences: Sequence[TokenSequence],
        config: TrainConfig,
        *,
        label: str = "train",
        reference: Reference | None = None,
    ) -> dict[str, float]:
        """Take one step as `Trainer.step` does; BackendError also if a rank dies."""
        check_can_split(config, sequences)
        if not sequences:
            return {"data/step_num_gradient_steps": 0.0}
        sent = attrs.evolve(config, advantage_fn=None)  # the sequences have the advantages
        values = {"sequences": sequences, "config": sent, "label": label}
        return self._taken("step", **values, reference=self._reference(reference))

    def fit(
        self, batches: Sequence[Sequence[TokenSequence]], config: TrainConfig, *, label: str = "sft"
    ) -> dict[str, float]:
        """Take one step of supervised fine-tuning as `Trainer.fit` does."""
        check_can_split(config, [s for batch in batches for s in batch])
        if not batches:
            return {"data/step_num_gradient_steps": 0.0}
        return self._taken("fit", batches=batches, config=config, label=label)

    def logprobs(
        self, ids_BS: Tensor, rows_R: Tensor, targets_R: Tensor, *, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return the ranks' log-probs [R] of the tokens after flat positions of one row; the
        entropies [R] are not computed.
        """
        assert torch.equal(ids_BS.flatten()[rows_R + 1], targets_R)
        ids, rows = ids_BS.flatten().tolist(), rows_R.tolist()
        found = self._running().request("logprobs", ids=ids, rows=rows, chunk_size=chunk_size)
        logprobs_R = torch.tensor(found[0])
        return logprobs_R, torch.full_like(logprobs_R, torch.nan)

    @property
    def device(self) -> torch.device:
        """The device of log-probs."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which ranks compute."""
        return self.policy.dtype

    def save(self, directory: Path) -> None:
        """Write the parts of adapter and optimizer into a checkpoint."""
        if self._states is not None:
            _link(self._states, directory)

    def read(self, directory: Path) -> None:
        """Continue with the optimizer of a checkpoint, from one process or any number of ranks."""
        self._states = self._next()
        _link(directory, self._states)
        self._end()

    def close(self) -> None:
        """End the ranks and remove their files."""
        self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self) -> None:
        if self.group is not None:
            self.group.end()
            self.group = None

    def _taken(self, operation: str, **values: Any) -> dict[str, float]:
        group, into = self._running(), self._next()
        try:
            with progress_bar(
                desc=values["label"], unit="tok", leave=False, disable=not self._progress
            ) as bar:
                answers = group.request(operation, report=bar.update, into=str(into), **values)
            metrics: dict[str, float] = answers[0]
            try:
                with self._turn():
                    self.policy.load(load_file(into / LORA), into)
            except BaseException:
                group.end()  # the ranks are a step ahead
                raise
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        before, self._states = self._states, into
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return metrics

    def _running(self) -> Group:
        """Return the group, a new one at the weights of the last step if there is none."""
        if self.group is None or self.group.dead:
            group = self._start()
            adapter = self._directory / "start.safetensors"
            save_file(_adapter(self.policy), adapter)
            states = None if self._states is None else str(self._states)
            group.request("load", adapter=str(adapter), states=states)
            self.group = group
        return self.group

    def _next(self) -> Path:
        self._number += 1
        path = self._directory / f"{self._number:06d}"
        path.mkdir()
        return path

    def _reference(self, reference: Reference | None) -> str | None:
        if reference is None:
            return None
        tensors = reference()
        if tensors is None:
            return BASE
        file = self._directory / "reference.safetensors"
        save_file(dict(tensors), file)
        return str(file)


def _adapter(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().cpu().contiguous() for n, p in policy.trained().items()}


def _link(source: Path, target: Path) -> None:
    """Put the files of parts and states of one directory into another."""
    names = {file.name for file in source.glob(PARTS)} | set(OPTIMIZERS.values())
    for name in names:
        if (source / name).exists():
            try:
                os.link(source / name, target / name)
            except OSError:
                shutil.copy2(source / name, target / name)
