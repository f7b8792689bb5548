"""The policy and the trainer of a session, in this process or on several devices; and their files
in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253
from safetensors.torch import load_file, save_file

from art_local.models.load import sharing_parameters
from art_local.session.checkpoints import LOCK_TIMEOUT_S
from art_local.training.lora import adapter_on_cpu
from art_local.training.phases import OPTIMIZERS, PARTS
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

if TYPE_CHECKING:
    from art_local.constraints.vocabulary import Vocabulary
    from art_local.distributed.group import Group
    from art_local.distributed.group_trainer import GroupTrainer
    from art_local.distributed.rank import RankSettings
    from art_local.session.model_session import SessionSetup

    StartRanks = Callable[[RankSettings], Group]


def make_policy(base: Any, directory: Path, setup: SessionSetup) -> Policy:
    """Return the policy of a new session over a loaded base model."""
    if setup.card.lora is None:
        learner = setup.loader.base(directory, setup.placement, torch.float32)
    else:
        learner = sharing_parameters(base)
    policy = Policy(
        learner,
        dtype=setup.placement.dtype,
        lora=setup.card.lora,
        seed=setup.card.seed,
        loader=setup.loader,
        # the policy that is trained is the one that is sampled from: vLLM does not merge
        merged=setup.engine.name != "vllm",
        experts=len(setup.trainers) == 1,  # ranks train W, A and B apart
        activation_checkpointing=setup.options.activation_checkpointing,
    )
    if policy.device.type == "meta":  # only ranks have the base's weights
        adapter_on_cpu(policy.model, torch.Generator().manual_seed(setup.card.seed))
    return policy


def make_trainer(
    policy: Policy,
    setup: SessionSetup,
    *,
    name: str,
    directory: Path,
    run_dir: Path,
    template: str | None,
    vocabulary: Vocabulary,
) -> Trainer | GroupTrainer:
    """Return the trainer of a session: one that starts ranks where there are several devices."""
    turn = partial(setup.device_lock.hold, f"training {name}", LOCK_TIMEOUT_S)
    if len(setup.trainers) == 1:
        return Trainer(
            policy,
            turn=turn,
            progress=setup.options.progress,
            deterministic=setup.options.deterministic,
            vocabulary=vocabulary,
        )
    from art_local.distributed.group import LocalGroup
    from art_local.distributed.group_trainer import GroupTrainer
    from art_local.distributed.rank import RankSettings

    assert setup.card.lora is not None
    settings = RankSettings(
        directory=directory,
        devices=tuple(str(each.device) for each in setup.trainers),
        dtype=policy.dtype,
        lora=setup.card.lora,
        seed=setup.card.seed,
        activation_checkpointing=setup.options.activation_checkpointing,
        threads=max(1, torch.get_num_threads() // len(setup.trainers)),
        chat_template=template,
    )
    start = partial(setup.start_ranks or LocalGroup, settings)
    progress = setup.options.progress
    return GroupTrainer(policy, start, run_dir / "ranks", turn=turn, progress=progress)


def save_trainer(trainer: Trainer | GroupTrainer, directory: Path) -> None:
    """Write the state of a trainer into a checkpoint."""
    if not isinstance(trainer, Trainer):
        trainer.save(directory)
        return
    for phase, state in trainer.states().items():
        save_file(state, directory / OPTIMIZERS[phase])
    trainer.critic.save(directory)


def read_trainer(trainer: Trainer | GroupTrainer, directory: Path, *, optimizer: bool) -> None:
    """Read the state of a trainer from a checkpoint, written by one process or by any number of
    ranks; `optimizer` is whether that of its optimizer fits.
    """
    if not isinstance(trainer, Trainer):
        if optimizer:
            trainer.read(directory)
        return
    if optimizer:
        if any(directory.glob(PARTS)):
            from art_local.distributed.states import whole_states

            states = whole_states(directory)
        else:
            files = {phase: directory / file for phase, file in OPTIMIZERS.items()}
            states = {phase: load_file(file) for phase, file in files.items() if file.exists()}
        trainer.load_states(states, directory)
    trainer.critic.read(directory)
