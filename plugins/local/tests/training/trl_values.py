"""Writes trl_values.json: losses and gradients that TRL's own trainer computes on fixed inputs.

Run it where TRL is installed (`pip install torch==2.13.0 trl==1.16.0 peft`), from any directory:

    python plugins/local/tests/training/trl_values.py

The tests read only the file, and import from here the model and the cases, never TRL.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("trl_values.json")
VOCABULARY, LENGTH = 64, 12
PROMPTS, ANSWERS = (3, 5, 4, 6, 2, 5), (4, 9, 1, 7, 12, 6)
ADVANTAGES = (1.0, -0.5, 0.75, -1.25, 0.5, -0.5)

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {
        "trl": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28},
        "ours": {
            "loss_fn": "ppo", "normalization": "sequence", "truncated_importance_sampling": 1e9,
        },
    },
    "grpo with a cap": {
        "trl": {"loss_type": "grpo", "epsilon": 0.2, "epsilon_high": 0.28, "delta": 2.0},
        "ours": {"loss_fn": "ppo", "normalization": "sequence"},
    },
    "dapo": {
        "trl": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "delta": 2.0},
        "ours": {"loss_fn": "dapo"},
    },
    "dr_grpo": {
        "trl": {"loss_type": "dr_grpo", "epsilon": 0.2, "delta": 2.0},
        "ours": {"loss_fn": "dr_grpo", "normalization_length": LENGTH},
    },
    "cispo": {
        "trl": {"loss_type": "cispo", "epsilon_high": 1.5},
        "ours": {"loss_fn": "cispo", "normalization": "token", "epsilon_high": 0.5},
    },
    "gspo": {
        "trl": {
            "loss_type": "grpo", "importance_sampling_level": "sequence", "delta": 2.0,
            "epsilon": 0.1, "epsilon_high": 0.15,
        },
        "ours": {"loss_fn": "gspo", "epsilon": 0.1, "epsilon_high": 0.15},
    },
    "cispo over sequences": {
        "trl": {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.1},
        "ours": {
            "loss_fn": "cispo", "importance_sampling_level": "sequence", "normalization": "token",
            "epsilon_high": 0.1,
        },
    },
}  # fmt: skip


def make_model(*, lora: bool) -> Any:
    """A Qwen3 of 22,000 parameters, their values drawn by their names; with a LoRA of rank 2."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw_parameters(dict(model.named_parameters()))
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    targets = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": "all-linear"}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **targets))
    draw_parameters({n: p for n, p in adapted.named_parameters() if p.requires_grad})
    return adapted


@torch.no_grad()
def draw_parameters(parameters: dict[str, torch.Tensor]) -> None:
    """Set parameters to values that depend only on their names."""
    for name, parameter in parameters.items():
        centre = 1.0 if "norm" in name else 0.0
        parameter.copy_(centre + 0.2 * drawn(name.replace(".default.", "."), parameter.shape))


def drawn(name: str, shape: Any) -> torch.Tensor:
    """Normal values [shape] that depend only on a name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def prints(gradients: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Of each parameter's gradient: its norm, and what it amounts to along two directions."""
    return {
        name: [short(g.norm()), *(short((g * drawn(f"{name}{i}", g.shape)).sum()) for i in "ab")]
        for name, g in gradients.items()
    }


def short(value: torch.Tensor) -> float:
    """A value to seven digits."""
    return float(f"{value.item():.7g}")


def sequences() -> list[dict[str, Any]]:
    """Prompts and answers, as token ids, with the advantages of the answers."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY - 2, (count,), generator=generator).tolist()

    return [
        {"prompt": ids(p), "answer": ids(a), "advantage": advantage}
        for p, a, advantage in zip(PROMPTS, ANSWERS, ADVANTAGES, strict=True)
    ]


def padded(rows: list[list[float]], *, left: bool, pad: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor, and a mask that is 0 for padding."""
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    values = [f + row if left else row + f for f, row in zip(fill, rows, strict=True)]
    masks = [[0] * len(f) + [1] * len(r) for f, r in zip(fill, rows, strict=True)]
    return torch.tensor(values), torch.tensor([m if left else m[::-1] for m in masks])


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    """What TRL's loss reads; old log-probs are the model's own and noise of std 0.4."""
    made = sequences()
    prompt_ids, prompt_mask = padded([s["prompt"] for s in made], left=True, pad=VOCABULARY - 2)
    answer_ids, answer_mask = padded([s["answer"] for s in made], left=False, pad=VOCABULARY - 2)
    with torch.no_grad():
        ids, mask = torch.cat([prompt_ids, answer_ids], 1), torch.cat([prompt_mask, answer_mask], 1)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, prompt_ids.shape[1] - 1 : -1]
        own = logits.log_softmax(-1).gather(2, answer_ids[..., None])[..., 0]
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": answer_ids,
        "completion_mask": answer_mask,
        "advantages": torch.tensor([s["advantage"] for s in made]),
        "old_per_token_logps": own + 0.4 * drawn("old", own.shape),
        "num_items_in_batch": answer_mask.sum(),
    }


def trl_case(options: dict[str, Any], *, lora: bool) -> dict[str, Any]:
    """Run TRL's trainer on the inputs: its loss and its gradients."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        eos_token=f"w{VOCABULARY - 1}",
        pad_token=f"w{VOCABULARY - 2}",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=make_model(lora=lora),
            reward_funcs=lambda completions, **_: [0.0 for _ in completions],
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=len(PROMPTS),
                num_generations=len(PROMPTS),
                max_completion_length=LENGTH,
                gradient_checkpointing=False,
                use_cpu=True,
                bf16=False,
                report_to=[],
                **options,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["w1"] * len(PROMPTS)}),
            processing_class=tokenizer,
        )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = inputs_of(trainer.model)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    moved = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    rows = zip(inputs["old_per_token_logps"], ANSWERS, strict=True)
    return {
        "old_logprobs": [[short(v) for v in row[:count]] for row, count in rows],
        "loss": short(loss),
        "gradients": prints({n.replace(".default.", "."): p.grad for n, p in moved.items()}),
    }


def main() -> None:
    """Write the values of all cases, for LoRA and for all weights, with the versions that made
    them.
    """
    import importlib.metadata

    values = {
        "versions": {n: importlib.metadata.version(n) for n in ("trl", "torch", "transformers")},
        "cases": {
            f"{name}, {kind}": trl_case(case["trl"], lora=kind == "LoRA")
            for name, case in CASES.items()
            for kind in ("LoRA", "whole")
        },
    }
    lines = [f" {json.dumps(name)}: {json.dumps(case)}" for name, case in values["cases"].items()]
    versions = json.dumps(values["versions"])
    FILE.write_text('{"versions": ' + versions + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
