"""Two processes train as one does: the same loss, gradient and weights; one start for all tests."""

from __future__ import annotations

import os
import signal
import threading

import attrs
import pytest
import torch
from distributed_helpers import (
    largest_difference,
    likelihood,
    one_process,
    policy,
    settings,
    weights,
)

from art_core.base.errors import BackendError, ConfigError
from art_core.rl.config import TrainConfig
from art_core.rl.losses import LossSpec
from art_core.rl.sft import sft_config
from art_local.distributed.group import LocalGroup
from art_local.distributed.group_trainer import GroupTrainer
from art_local.distributed.states import whole_states
from waiting import alive, until

RATE = 1e-3
COMPARED = ("loss/train", "loss/entropy", "loss/grad_norm", "loss/kl_k3")


@pytest.fixture(scope="module")
def group(tiny_directory):
    group = LocalGroup(settings(tiny_directory, 2))
    yield group
    group.end()


@pytest.fixture
def pair(group, tiny_directory, tmp_path):
    """A trainer in two ranks, at the seed's weights, and the same in this process."""
    trainer = GroupTrainer(
        policy(tiny_directory), lambda: group, tmp_path / "ranks", progress=False
    )
    alone = one_process(tiny_directory)
    yield trainer, alone
    # the next test loads its own weights into the same ranks
    trainer.group = None
    trainer.close()


def check_equal(found, wanted):
    for key in COMPARED:
        assert found[key] == pytest.approx(wanted[key], abs=1e-5, rel=1e-5), key
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_accumulation_sequences": 5},
        {"packing": False, "micro_batch_tokens": 50},
        {"kl_penalty_coef": 0.1, "entropy_coef": 0.01},
    ],
    ids=["one step", "several steps", "rows", "penalties"],
)
def test_two_ranks_take_the_step_of_one_process(pair, sequences, options):
    trainer, alone = pair
    config = TrainConfig(learning_rate=RATE, **options)
    reference = (lambda: None) if config.kl_penalty_coef else None
    found = trainer.step(sequences, config, reference=reference)
    check_equal(found, alone.step(sequences, config, reference=reference))
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5


def test_more_ranks_than_sequences_count_each_once(pair, sequences):
    trainer, alone = pair
    config = TrainConfig(learning_rate=RATE)
    check_equal(trainer.step(sequences[:1], config), alone.step(sequences[:1], config))
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5


def test_supervised_steps_have_an_optimizer_of_their_own_which_is_stored(pair, sequences, tmp_path):
    trainer, alone = pair
    config = TrainConfig(learning_rate=RATE)
    for each in (trainer, alone):
        each.step(sequences, config)
        each.fit([sequences[:5], sequences[5:]], sft_config(learning_rate=RATE))
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5
    trainer.save(tmp_path)
    found, wanted = whole_states(tmp_path), alone.states()
    assert found.keys() == wanted.keys() == {"rl", "sft"}
    for phase in wanted:
        assert largest_difference(found[phase], wanted[phase]) < 1e-5


def test_ranks_continue_from_the_state_of_one_process(pair, sequences, tmp_path):
    from safetensors.torch import save_file

    trainer, alone = pair
    config = TrainConfig(learning_rate=RATE)
    alone.step(sequences, config)
    save_file(alone.states()["rl"], tmp_path / "optimizer.safetensors")
    trainer.policy.load(weights(alone), tmp_path)
    trainer.read(tmp_path)
    trainer.step(sequences, config)
    alone.step(sequences, config)
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5


def test_the_ranks_compute_the_log_probs_of_the_policy(pair):
    trainer, alone = pair
    ids_S = torch.arange(20)
    rows_R = torch.arange(5, 19)
    with torch.no_grad():
        wanted_R, _ = alone.policy.logprobs(ids_S[None], rows_R, ids_S[rows_R + 1], chunk_size=8)
    found_R, _ = trainer.logprobs(ids_S[None], rows_R, ids_S[rows_R + 1], chunk_size=8)
    assert torch.allclose(found_R, wanted_R, atol=1e-5)


def test_each_rank_holds_half_of_the_weights_between_steps(pair, group, sequences):
    trainer, alone = pair
    trainer.step(sequences, TrainConfig())
    held = group.request("held_bytes")
    whole = sum(p.nbytes for p in alone.policy.model.parameters())
    assert sum(held) == whole
    assert max(held) == pytest.approx(whole / 2, rel=0.01)


def test_a_gradient_that_is_not_finite_leaves_weights_and_ranks(pair, sequences):
    trainer, _ = pair
    before = weights(trainer)
    broken = [attrs.evolve(s, advantage=float("inf")) for s in sequences]
    with pytest.raises(BackendError, match="gradient's norm is"):
        trainer.step(broken, TrainConfig())
    assert largest_difference(weights(trainer), before) == 0
    assert not trainer.group.dead
    assert trainer.step(sequences, TrainConfig())["data/step_num_gradient_steps"] == 1.0


@pytest.mark.parametrize(
    ("options", "stated"),
    [
        ({"advantage_baseline": "value"}, "trains a critic"),
        ({"optimizer": "adamw_8bit"}, "optimizer='adamw_8bit' has a state that cannot be split"),
    ],
)
def test_what_several_devices_cannot_train_is_refused(pair, sequences, options, stated):
    with pytest.raises(ConfigError, match=f"{stated}.*several devices"):
        pair[0].step(sequences, TrainConfig(**options))


def test_a_loss_of_your_own_is_imported_in_the_ranks(pair, sequences):
    trainer, alone = pair
    config = TrainConfig.of(loss_fn="distributed_helpers:likelihood", learning_rate=RATE)
    check_equal(trainer.step(sequences, config), alone.step(sequences, config))


def test_a_loss_that_cannot_be_sent_is_refused(pair, sequences):
    mine = LossSpec(name="mine", create=lambda: likelihood)
    with pytest.raises(ConfigError, match="cannot be sent to the ranks.*must be importable"):
        pair[0].step(sequences, TrainConfig(loss_fn=mine))


def test_a_rank_that_dies_in_a_step_ends_the_others_with_its_reason(pair, group, sequences):
    trainer, _ = pair
    trainer.step(sequences, TrainConfig(learning_rate=RATE))
    before, pids = weights(trainer), [group.agent_pid, *group.pids.values()]
    os.kill(group.pids[1], signal.SIGSTOP)  # it cannot end the step before it is killed
    threading.Timer(0.5, os.kill, (group.pids[1], signal.SIGKILL)).start()
    with pytest.raises(BackendError, match=r"rank 1 of 2 ended with exit code -9 \(SIGKILL"):
        trainer.step(sequences, TrainConfig(learning_rate=RATE))
    until(lambda: not any(map(alive, pids)))
    assert group.dead
    assert largest_difference(weights(trainer), before) == 0
