"""Multimodal models train their text model; vision towers stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

from art_core.rl.config import TrainConfig
from art_local.models.load import load_model
from art_local.models.placement import placement
from art_local.training.policy import Policy
from art_local.training.trainer import Trainer

TEXT = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EYES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
CONFIGS = {
    "Gemma3": {"mm_tokens_per_image": 4, "image_token_index": 250, "text_config": TEXT},
    "Mistral3": {
        "image_token_index": 250,
        "text_config": {"model_type": "mistral", "sliding_window": None, **TEXT},
    },
}
IDS = torch.arange(1, 41).reshape(2, 20)
families = pytest.mark.parametrize("family", CONFIGS)


@pytest.fixture
def directory(family, tmp_path):
    """A model on disk, with its vision tower."""
    vision = EYES if family == "Gemma3" else {"model_type": "pixtral", **EYES}
    config = getattr(transformers, f"{family}Config")(vision_config=vision, **CONFIGS[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(directory):
    return load_model(directory, placement("cpu", "float32"), torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def is_seeing(name):
    return "vision" in name or "projector" in name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@families
def test_lora_is_in_the_text_model_only_and_loads_in_peft(directory, sequences, tmp_path):
    policy = Policy(loaded(directory), dtype=torch.float32, lora=(4, 8), seed=0)
    assert len(policy.trained()) == 2 * 2 * 7
    assert not any(map(is_seeing, policy.trained()))
    Trainer(policy, progress=False).step(sequences, TrainConfig(learning_rate=1e-2))

    wanted = logits(policy.model)
    assert not torch.allclose(wanted, logits(loaded(directory)), atol=1e-3)
    policy.save(tmp_path, str(directory))
    other = PeftModel.from_pretrained(loaded(directory), tmp_path)
    torch.testing.assert_close(logits(other), wanted, rtol=1e-4, atol=1e-5)


@families
def test_all_weights_of_the_text_model_move_and_the_checkpoint_is_the_whole_model(
    directory, sequences, tmp_path
):
    policy = Policy(loaded(directory), dtype=torch.float32, lora=None, seed=0)
    trainer = Trainer(policy, progress=False)
    trainer.step(sequences, TrainConfig(learning_rate=1e-2))
    policy.save(tmp_path, str(directory))

    whole, before = loaded(tmp_path), loaded(directory)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name)) == is_seeing(name), name
    torch.testing.assert_close(logits(whole), logits(policy.model))

    again = Policy(loaded(directory), dtype=torch.float32, lora=None, seed=0)
    again.load(again.read(tmp_path), tmp_path)
    Trainer(again, progress=False).optimizer.load(trainer.optimizer.state(), Path("a checkpoint"))
    torch.testing.assert_close(logits(again.model), logits(policy.model))


@pytest.mark.parametrize("family", ["Mistral3"])
def test_packed_rows_have_the_logprobs_of_rows(directory, sequences):
    policy = Policy(loaded(directory), dtype=torch.float32, lora=(4, 8), seed=0)
    Trainer(policy, progress=False).step(sequences, TrainConfig(packing=True))
    assert policy.packs is True
