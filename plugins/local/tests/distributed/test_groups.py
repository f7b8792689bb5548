"""Groups of two and four ranks: a backend trained by them, their deaths, and their checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest
import torch
from distributed_helpers import largest_difference, one_process, policy, settings, weights
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

import art_core as art
from art_core.base.errors import BackendError
from art_core.rl.config import TrainConfig
from art_core.testing.backend import BackendContract
from art_local.distributed.group import LocalGroup
from art_local.distributed.group_trainer import GroupTrainer
from art_local.distributed.states import whole_states
from art_local.testing.tiny import save_tiny_model
from waiting import alive, until

pytestmark = pytest.mark.ranks
RATE = 1e-3


@pytest.fixture
def made(tiny_directory, tmp_path):
    """Makes trainers in so many ranks; their groups are ended with the test."""
    trainers = []

    def make(count, **options):
        def start():
            return LocalGroup(settings(tiny_directory, count, **options))

        directory = tmp_path / f"ranks{len(trainers)}"
        dtype = options.get("dtype", torch.float32)
        made = GroupTrainer(policy(tiny_directory, dtype), start, directory, progress=False)
        trainers.append(made)
        return made

    yield make
    for trainer in trainers:
        trainer.close()


def test_four_ranks_take_the_step_of_one_process(made, tiny_directory, sequences):
    trainer, alone = made(4), one_process(tiny_directory)
    for size in (None, 5):
        config = TrainConfig(learning_rate=RATE, grad_accumulation_sequences=size)
        found, wanted = trainer.step(sequences, config), alone.step(sequences, config)
        for key in ("loss/train", "loss/grad_norm"):
            assert found[key] == pytest.approx(wanted[key], abs=1e-5, rel=1e-5)
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5


async def _attempt(model, reward):
    ask = {"role": "user", "content": "go"}
    reply = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[ask], max_tokens=6
    )
    return art.Trajectory(messages_and_choices=[ask, reply.choices[0]], reward=reward)


async def test_ranks_train_the_other_layers_of_a_mixture_of_experts(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    config = Qwen3MoeConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(base)
    model = art.TrainableModel(
        name="experts", project="ranks", base_model=str(base), base_path=tmp_path, sinks=[]
    )
    pair = ["cpu", "cpu"]
    backend = art.backend("local", trainer_devices=pair, dtype="float32", progress=False)
    async with model:
        await model.register(backend)
        group = await art.TrajectoryGroup(_attempt(model, reward) for reward in (0.0, 1.0))
        metrics = (await model.train([group], learning_rate=RATE, mask_truncated=False)).metrics
        after = await _attempt(model, 0.0)
        await backend.close()
    assert metrics["loss/grad_norm"] > 0
    assert metrics["loss/engine_logprob_diff"] < 1e-4
    assert after.messages()


@pytest.mark.parametrize(("writing", "reading"), [(4, 2), (2, 4)])
def test_a_checkpoint_of_ranks_loads_on_any_number_of_them(
    made, tiny_directory, sequences, tmp_path, writing, reading
):
    config = TrainConfig(learning_rate=RATE)
    first, alone = made(writing), one_process(tiny_directory)
    for trainer in (first, alone):
        trainer.step(sequences, config)
    first.save(tmp_path)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == writing
    states = whole_states(tmp_path)
    assert largest_difference(states["rl"], alone.states()["rl"]) < 1e-5

    # one process goes on from it
    single = one_process(tiny_directory)
    single.policy.load(weights(first), tmp_path)
    single.load_states(states, tmp_path)
    # and another number of ranks
    others = made(reading)
    others.policy.load(weights(first), tmp_path)
    others.read(tmp_path)
    for trainer in (alone, single, others):
        trainer.step(sequences, config)
    assert largest_difference(weights(single), weights(alone)) < 1e-5
    assert largest_difference(weights(others), weights(alone)) < 1e-5


def test_after_a_death_between_steps_new_ranks_continue_from_the_last_step(
    made, tiny_directory, sequences, caplog
):
    trainer, alone = made(2), one_process(tiny_directory)
    config = TrainConfig(learning_rate=RATE)
    for each in (trainer, alone):
        each.step(sequences, config)
    os.kill(trainer.group.pids[0], signal.SIGKILL)
    until(lambda: trainer.group.dead)  # once the kernel has closed its socket
    for each in (trainer, alone):
        each.step(sequences, config)
    assert "rank 0 of 2 ended with exit code -9" in caplog.text
    assert largest_difference(weights(trainer), weights(alone)) < 1e-5


def test_a_rank_that_fails_alone_ends_all_with_its_error(made, sequences):
    trainer = made(2)
    trainer.step(sequences, TrainConfig())
    pids = list(trainer.group.pids.values())
    config = TrainConfig.of(loss_fn="distributed_helpers:failing_in_rank_1")
    with pytest.raises(BackendError, match="rank 1 of 2 failed: ZeroDivisionError: only here"):
        trainer.step(sequences, config)
    until(lambda: not any(map(alive, pids)))


def test_ranks_in_bf16_train_nearly_as_in_fp32(made, sequences):
    found = [
        made(2, dtype=dtype).step(sequences, TrainConfig(learning_rate=RATE))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert found[1]["loss/entropy"] == pytest.approx(found[0]["loss/entropy"], rel=0.01)
    assert found[1]["loss/grad_norm"] == pytest.approx(found[0]["loss/grad_norm"], rel=0.05)


PARENT = """\
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
from distributed_helpers import settings
from art_local.distributed.group import LocalGroup

if __name__ == "__main__":
    group = LocalGroup(settings(Path({directory!r}), 2))
    print(group.agent_pid, *group.pids.values(), flush=True)
    time.sleep(600)
"""


def test_ranks_end_with_the_process_that_started_them(tiny_directory, tmp_path):
    script = tmp_path / "parent.py"
    here = os.path.dirname(__file__)  # noqa: PTH120
    script.write_text(PARENT.format(here=here, directory=str(tiny_directory)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.kill()
    until(lambda: not any(map(alive, pids)))


class TestTwoRanks(BackendContract):
    train_options: ClassVar = {"mask_truncated": False, "learning_rate": 1e-3}

    @pytest.fixture
    def make_backend(self):
        return lambda: art.backend(
            "local",
            trainer_devices=["cpu", "cpu"],
            dtype="float32",
            lora_rank=4,
            lora_alpha=8,
            gpu_cost_per_hour_usd=1.0,
            progress=False,
        )

    @pytest.fixture(autouse=True)
    def _tiny(self, tiny_directory, monkeypatch):
        monkeypatch.setattr(type(self), "base_model", str(tiny_directory))
