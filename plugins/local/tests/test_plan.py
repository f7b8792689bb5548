"""`art plan`: its arithmetic against models that are there."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, Qwen3MoeConfig

from art_core.base.errors import BackendError, ConfigError
from art_core.cli.main import main
from art_core.rl.config import OPTIMIZERS, TrainConfig
from art_local.engine.layer_types import cache_parameter
from art_local.models.config_file import find_config
from art_local.plan import ALWAYS, Plan, PlanOptions
from art_local.plan_command import size
from art_local.training import attention
from art_local.training.blueprint import saved_storages
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

SIZES = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 1024,
}  # fmt: skip
CONFIGS = {
    "dense": Qwen3Config(**SIZES),
    "experts": Qwen3MoeConfig(
        **SIZES, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64
    ),
}
CONTEXT = 512


@pytest.mark.parametrize("rank", [8, None], ids=["LoRA", "whole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_plan_is_what_a_step_takes(kind, dtype, rank, sequences, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SHORT", 0)  # as in rows of thousands of tokens
    config = CONFIGS[kind]
    made = Plan(config, PlanOptions(dtype=dtype, rank=rank))
    planned = {item.name: item.bytes for item in made.items(CONTEXT, checkpointing=False)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype if rank else torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    lora = None if rank is None else (rank, rank)
    policy = Policy(model, dtype=dtype, lora=lora, seed=0)
    trainer = Trainer(policy, progress=False)
    trainer.step(sequences, TrainConfig(packing=False))
    trained = policy.trained().values()

    assert made.parameters == parameters
    assert made.trained == sum(p.numel() for p in trained)
    assert planned["base weights"] == parameters * dtype.itemsize
    weights = "adapter, fp32" if rank else "trained weights, fp32"
    assert planned[weights] == planned["gradients"] == sum(p.nbytes for p in trained)
    assert planned["Adam's moments"] == sum(t.nbytes for t in trainer.optimizer.moments().values())
    assert planned["served weights"] == 3 * sum(t.nbytes for t in policy.serving.values())
    ids = torch.arange(CONTEXT) % 260
    with saved_storages(policy) as kept:
        policy.logprobs(ids[None], torch.arange(CONTEXT - 1), ids[1:], chunk_size=512)
    assert planned["activations"] == pytest.approx(sum(kept.values()), rel=0.1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plan_counts_the_moments_of_the_optimizer_that_trains(optimizer, sequences):
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has Muon since 2.9")
    config = CONFIGS["dense"]
    made = Plan(config, PlanOptions(dtype=torch.float32, rank=None, optimizer=optimizer))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    trainer = Trainer(Policy(model, dtype=torch.float32, lora=None, seed=0), progress=False)
    trainer.step(sequences, TrainConfig(packing=False, optimizer=optimizer))
    held = sum(t.nbytes for t in trainer.optimizer.moments().values())
    assert sum(item.bytes for item in made.items(64, checkpointing=True) if is_moment(item)) == held


def is_moment(item):
    return "moment" in item.name


def test_moments_of_8_bits_take_two_bytes_and_a_scale_of_each_for_256_values():
    options = {"dtype": torch.float32, "rank": 8, "optimizer": "adamw_8bit"}
    config = Qwen3Config(**SIZES | {"num_hidden_layers": 1, "intermediate_size": 1024})
    (small, large) = sorted(
        filter(is_moment, Plan(config, PlanOptions(**options)).items(64, checkpointing=True)),
        key=lambda item: item.name == "8-bit moments",
    )
    # gate, up and down have a factor of 8 x 1,024 each; every other factor is smaller than 4,096
    assert large.formula == "24,576 parameters x 2 bytes + 96 blocks x 8 bytes"
    assert large.bytes == 2 * 24_576 + 8 * 96
    assert small.name == "Adam's moments"


def test_muon_is_planned_for_all_weights_only():
    with pytest.raises(ConfigError, match="optimizer muon trains all weights.*--full"):
        Plan(CONFIGS["dense"], PlanOptions(dtype=torch.float32, rank=8, optimizer="muon"))


def test_keys_and_values_are_those_of_a_cache():
    made = Plan(CONFIGS["dense"], PlanOptions(dtype=torch.float32, rank=8, sequences=3))
    model, cache = AutoModelForCausalLM.from_config(CONFIGS["dense"]), DynamicCache()
    with torch.no_grad():
        named = {cache_parameter(model): cache}
        model(input_ids=torch.zeros(1, 96, dtype=torch.long), use_cache=True, **named)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert made.key_values(96) == held
    planned = {item.name: item.bytes for item in made.items(96, checkpointing=False)}
    assert planned["keys and values"] == 3 * held


def test_the_largest_context_is_the_last_that_fits():
    made = Plan(CONFIGS["dense"], PlanOptions(dtype=torch.float32, rank=8))
    memory = int(made.peak(300, checkpointing=False) / 0.9) + 1
    assert made.largest_context(memory, checkpointing=False) == 300
    assert made.largest_context(memory, checkpointing=True) > 300
    assert made.largest_context(1 << 50, checkpointing=False) == 1024
    assert made.largest_context(1000, checkpointing=True) == 0


def test_vllm_serves_adapters_so_no_merged_weights_are_held():
    names = []
    for merged in (True, False):
        made = Plan(CONFIGS["dense"], PlanOptions(dtype=torch.bfloat16, rank=8, merged=merged))
        names.append({item.name for item in made.items(64, checkpointing=True)})
    assert names[0] - names[1] == {"served weights"}


def test_a_model_that_cannot_be_counted_is_refused_in_a_sentence(monkeypatch):
    from art_local import plan

    def trip(*_, **__):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    monkeypatch.setattr(plan, "Blueprint", trip)
    with pytest.raises(ConfigError, match=r"memory of qwen3 cannot be counted .* Tensor\.item"):
        Plan(CONFIGS["dense"], PlanOptions(dtype=torch.float32, rank=8))


@pytest.fixture
def config_alone(tiny_directory, tmp_path):
    shutil.copy(tiny_directory / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["", "config.json"])
def test_a_config_is_enough(config_alone, capsys, file):
    assert main(["plan", str(config_alone / file), "--memory", "40MB", "--context", "256"]) == 0
    shown = capsys.readouterr().out
    assert "Qwen3ForCausalLM" in shown
    assert "525,568 parameters x 2 bytes" in shown
    assert "with checkpointing: 256 tokens x" in shown


def test_a_program_gets_every_number(config_alone, capsys):
    options = ["--full", "--memory", "16MB", "--dtype", "float32", "--json"]
    assert main(["plan", str(config_alone), "--context", "512", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["trained_parameters"]) == (525568, 525568)
    assert (found["memory_bytes"], found["method"], found["rank"]) == (16_000_000, "full", None)
    sums = {item["item"]: item["bytes"] for item in found["items"] if item["when"] == ALWAYS}
    assert sums["Adam's moments"] == 8 * 525568
    assert [row["context"] for row in found["contexts"]] == [512]
    assert found["contexts"][0]["fits"] == "no"
    assert found["largest_context"] == 0


def test_a_hub_id_is_looked_up_in_the_caches(config_alone, monkeypatch, tmp_path):
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("art_local.models.config_file.hub_answers", lambda: False)
    with pytest.raises(BackendError, match=r"config\.json of 'some/model' is not on this machine"):
        find_config("some/model")
    kept = tmp_path / "cache" / "models" / "some--model"
    kept.mkdir(parents=True)
    shutil.copy(config_alone / "config.json", kept)
    assert find_config("some/model") == kept
    with pytest.raises(ConfigError, match="no config.json at"):
        find_config(tmp_path / "hub")


def test_sizes_are_read_in_both_kinds_of_units():
    assert [size(text) for text in ("80GB", "24 GiB", "1.5t", "512")] == [
        80 * 10**9, 24 * 2**30, 15 * 10**11, 512,
    ]  # fmt: skip
    for text in ("80XB", "GB", "", "0", "1.2.3GB"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
            size(text)


def test_several_gpus_hold_a_part_each_and_receive_the_rest():
    options = {"dtype": torch.bfloat16, "rank": 8, "merged": False}
    one, four = (Plan(CONFIGS["dense"], PlanOptions(**options, gpus=n)) for n in (1, 4))
    planned = {item.name: item.bytes for item in four.items(64, checkpointing=True)}
    assert planned["base weights, one part"] == -(-one.parameters * 2 // 4)
    assert planned["Adam's moments, one part"] == one.trained * 8 // 4
    # 260 tokens x 64 in the embedding, tied to the head or not, and the last norm
    outside, layer = four.gathered
    assert outside == 2 * (260 * 64 * (1 if CONFIGS["dense"].tie_word_embeddings else 2) + 64)
    assert 6 * layer + outside == 2 * (one.parameters + one.trained)
    forward, backward, gradients = (item.bytes for item in four.traffic())
    assert forward == (6 * layer + outside) * 3 // 4
    assert backward == 6 * layer * 3 // 4
    assert gradients == one.trained * 4 * 3 // 4
    assert {item.when for item in four.items(64, checkpointing=True)} == {ALWAYS, "in a step"}


def test_several_gpus_train_lora_only():
    with pytest.raises(ConfigError, match=r"several GPUs train LoRA.*without --full"):
        Plan(CONFIGS["dense"], PlanOptions(dtype=torch.float32, rank=None, gpus=2))


def test_the_command_shows_what_gpus_send_each_other(config_alone, capsys):
    options = ["--gpus", "2", "--memory", "40MB", "--context", "256"]
    assert main(["plan", str(config_alone), *options]) == 0
    shown = capsys.readouterr().out
    assert "each of 2 GPUs: longest sequence in 0.04 GB" in shown
    assert "received in a pass" in shown
    assert "base weights, one part" in shown
