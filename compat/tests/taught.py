"""A tiny model that has learned to give short answers, so that a published script takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

STEPS, LEARNING_RATE = 60, 3e-3


def save_taught_model(directory: Path, examples: Sequence[tuple[str, str]]) -> Path:
    """Write the tiny model after it was trained on prompts and answers; return its directory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from art_local.testing.tiny import save_tiny_model

    save_tiny_model(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    rows = [_row(tokenizer, prompt, answer) for prompt, answer in examples]
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels_BT = torch.full_like(ids_BT, -100)
    for number, (ids, start) in enumerate(rows):
        labels_BT[number, start : len(ids)] = ids_BT[number, start : len(ids)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids_BT, labels=labels_BT).loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    return directory


def _row(tokenizer, prompt: str, answer: str) -> tuple[list[int], int]:
    """Return the ids of a conversation, and the place where its answer begins."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    before = tokenizer(asked, add_special_tokens=False)["input_ids"]
    after = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
    return before + after, len(before)
