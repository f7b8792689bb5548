"""The program of one rank: it joins the others and runs the operations that come to it.

`Rank` needs nothing but the variables RANK and WORLD_SIZE and an `init_method` of torch, so that
torchrun's agent, an actor or a test can hold one. `python -m art_local.distributed.rank` serves one
over a socket.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.constraints.vocabulary import Vocabulary
from art_local.distributed.ranks import Ranks
from art_local.distributed.shard_trainer import Report, ShardTrainer, ignored
from art_local.distributed.sharding import ShardedPolicy
from art_local.distributed.states import load_parts, save_parts
from art_local.models.load import load_tokenizer
from art_local.training.policy import LORA

KEY = "ART_RANKS_KEY"
PARENT_CHECKS_S = 0.5
BASE = "base"
"""The reference of a KL penalty that is the base model."""


@attrs.frozen(kw_only=True)
class RankSettings:
    """What all ranks are started with: a base model's directory, their devices in the order of
    ranks, and the policy's options. `threads` are those of one rank on a CPU.
    """

    directory: Path
    devices: tuple[str, ...]
    dtype: torch.dtype
    lora: tuple[int, int]
    seed: int
    activation_checkpointing: bool | str
    threads: int
    chat_template: str | None = None
    init_method: str = "env://"


class Rank:
    """A rank's policy and trainer. Each operation is called on all ranks at the same time. Rank 0
    calls `report` with the tokens that it has computed, part by part.
    """

    def __init__(self, settings: RankSettings, report: Report = ignored) -> None:
        self._settings, self._report = settings, report
        device = torch.device(settings.devices[int(os.environ["RANK"])])
        if device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self.ranks = Ranks.join(device, settings.init_method)
        self.policy = ShardedPolicy(
            settings.directory,
            self.ranks,
            dtype=settings.dtype,
            lora=settings.lora,
            seed=settings.seed,
            activation_checkpointing=settings.activation_checkpointing,
        )
        self.trainer = self._new_trainer()

    def load(self, adapter: str, states: str | None) -> None:
        """Continue with an adapter's weights, from a file, and the optimizer's states that one
        process or ranks wrote into a directory; without one it begins anew.
        """
        self.policy.load(load_file(adapter), Path(adapter))
        self.trainer = self._new_trainer()
        if states is not None:
            found = load_parts(self.policy, Path(states))
            self.trainer.load_states(found, Path(states))

    def step(
        self,
        sequences: Sequence[TokenSequence],
        config: TrainConfig,
        label: str,
        reference: str | None,
        into: str,
    ) -> dict[str, float]:
        """Take one step and write its adapter and states into a directory; return the metrics.
        `reference` is the file of an adapter, or "base".
        """
        self._prepare(sequences)
        under = None if reference is None else lambda: self._reference(reference)
        metrics = self.trainer.step(sequences, config, label=label, reference=under)
        self._save(Path(into))
        return metrics

    def fit(
        self,
        batches: Sequence[Sequence[TokenSequence]],
        config: TrainConfig,
        label: str,
        into: str,
    ) -> dict[str, float]:
        """Take one step of supervised fine-tuning as `step` does."""
        self._prepare([s for batch in batches for s in batch])
        metrics = self.trainer.fit(batches, config, label=label)
        self._save(Path(into))
        return metrics

    def logprobs(self, ids: list[int], rows: list[int], chunk_size: int) -> list[float]:
        """Return the log-probs of the tokens after these places."""
        ids_S = torch.tensor(ids, device=self.policy.device)
        rows_R = torch.tensor(rows, device=self.policy.device)
        with torch.no_grad():
            found, _ = self.policy.logprobs(
                ids_S[None], rows_R, ids_S[rows_R + 1], chunk_size=chunk_size
            )
        return [float(value) for value in found.float().cpu()]

    def held_bytes(self) -> int:
        """Return the bytes of this rank's part of base and adapter, as they lie between steps."""
        held = [p.detach().to_local() for p in self.policy.model.parameters()]  # type: ignore[operator]
        return sum(int(part.nbytes) for part in held)

    def _new_trainer(self) -> ShardTrainer:
        return ShardTrainer(self.policy, self._report if self.ranks.first else ignored)

    def _prepare(self, sequences: Sequence[TokenSequence]) -> None:
        if any(s.grammars for s in sequences) and self.trainer.vocabulary is None:
            tokenizer = load_tokenizer(self._settings.directory, self._settings.chat_template)
            self.trainer.vocabulary = Vocabulary(tokenizer, self.policy.head.weight_VH.shape[0])

    def _reference(self, reference: str) -> Mapping[str, Tensor]:
        if reference != BASE:
            return load_file(reference)
        # B = 0 is the base model
        whole = self.policy.whole()
        return {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in whole.items()}

    def _save(self, directory: Path) -> None:
        whole = self.policy.whole()
        if self.ranks.first:
            save_file(whole, directory / LORA, metadata={"format": "pt"})
        save_parts(self.policy, self.trainer.states(), directory)


def serve(connection: Connection) -> None:
    """Answer requests over a connection until the other side closes it."""
    settings: RankSettings = connection.recv()
    rank: Rank | None = None
    while True:
        try:
            if rank is None:
                rank = Rank(settings, lambda tokens: connection.send({"tokens": tokens}))
                connection.send({"answer": None})
            operation, values = pickle.loads(connection.recv_bytes())  # noqa: S301 - our parent's
            connection.send({"answer": getattr(rank, operation)(**values)})
        except EOFError:
            return
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            connection.send({"error": error_of(error)})


def error_of(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this line
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def end_with(parent: int) -> None:
    """End this process when its parent has ended, whatever it computes."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECKS_S)
    os._exit(1)


def main(address: str) -> None:
    """Serve the process that listens at an address."""
    parent = os.getppid()
    threading.Thread(target=end_with, args=(parent,), name="art-rank-parent", daemon=True).start()
    with Client(address, authkey=bytes.fromhex(os.environ.pop(KEY))) as connection:
        connection.send((int(os.environ["RANK"]), os.getpid()))
        sys.path.extend(entry for entry in connection.recv() if entry not in sys.path)
        serve(connection)
    # without waiting for ranks that were ended
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
