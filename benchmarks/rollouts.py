"""New tokens per second through the endpoint with an adapter, against transformers' `generate`.

Both sample 64 tokens after chat prompts of 128 tokens from SmolLM2-135M-Instruct in bf16 with the
same LoRA adapter (rank 16, all linear layers) at temperature 1, at 1, 8 and 32 sequences together.
The baseline is one batched `generate` of the peft model. Ours are concurrent chat completions of
the openai client over HTTP, with log-probabilities and token ids, as training asks for them. Both
are timed in turns within one process, so that the ratio holds on a noisy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import statistics
import sys
import time
from typing import Any

from art_local.torch_environment import set_torch_environment

set_torch_environment()

import openai  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from art_core.endpoint.engine import ServedModel  # noqa: E402
from art_core.endpoint.host import EndpointHost  # noqa: E402
from art_local.engine import TransformersEngine  # noqa: E402
from art_local.models import resolve_base_model  # noqa: E402
from art_local.models.load import silence_logs  # noqa: E402

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONCURRENCY = (1, 8, 32)
TARGET_AT_32 = 1.3
WORDS = ("river", "stone", "lamp", "garden", "winter", "paper", "silver", "window", "letter")


class OneModel:
    """Serves one adapter under one name."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def names(self) -> list[str]:
        return [self._served.name]

    async def resolve(self, name: str) -> ServedModel:
        assert name == self._served.name
        return self._served


def chat_prompt(tokenizer: Any, number: int, length: int) -> tuple[str, list[int]]:
    """Make a message, different for each number, whose chat prompt has `length` tokens."""
    words = [str(number), *(WORDS[(number + k * k) % len(WORDS)] for k in range(length))]
    for count in range(len(words), 0, -1):
        text = " ".join(words[:count])
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        if len(ids) <= length:
            return text, ids
    raise AssertionError("the chat template is longer than the requested prompt")


def with_lora(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a peft model with a random adapter, and the same adapter merged, for the engine."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    merged = {}
    with torch.no_grad():
        for name, module in adapted.base_model.model.named_modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.mul_(0.01)
                delta = module.get_delta_weight("default")
                merged[f"{name}.weight"] = module.base_layer.weight + delta
    return adapted, merged


def generate(model: Any, prompts: list[list[int]], new_tokens: int) -> float:
    """New tokens per second of one batched `generate`."""
    width = max(map(len, prompts))
    pad = model.config.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=pad,
    )
    assert out.shape[1] == width + new_tokens
    return len(prompts) * new_tokens / (time.perf_counter() - started)


async def complete(client: openai.AsyncOpenAI, texts: list[str], new_tokens: int) -> float:
    """New tokens per second of concurrent chat completions."""
    started = time.perf_counter()
    answers = await asyncio.gather(
        *[
            client.chat.completions.create(
                model="smol@1",
                messages=[{"role": "user", "content": text}],
                max_completion_tokens=new_tokens,
                logprobs=True,
                extra_body={"return_token_ids": True},
            )
            for text in texts
        ]
    )
    elapsed = time.perf_counter() - started
    for answer in answers:
        (choice,) = answer.choices
        assert len(choice.token_ids) == len(choice.logprobs.content) == new_tokens
    return len(texts) * new_tokens / elapsed


async def measure(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median tokens per second of (generate, endpoint) by what is sampled together."""
    directory = resolve_base_model(options.model)
    with silence_logs():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        served_model = copy.deepcopy(model)
        # Without end tokens every completion has its full length, as min_new_tokens gives generate.
        served_model.generation_config.eos_token_id = None
        engine = TransformersEngine(served_model)
        prompts = [
            chat_prompt(tokenizer, n, options.prompt_tokens) for n in range(max(CONCURRENCY))
        ]
        tokenizer.eos_token = None
        adapted, merged = with_lora(model)
    engine.load("smol-1", merged)
    served = ServedModel(
        engine=engine, tokenizer=tokenizer, adapter="smol-1", name="smol@1", policy_version=1
    )
    cases = {str(count): prompts[:count] for count in CONCURRENCY}
    cases["32_in_groups_of_8"] = prompts[:4] * 8
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
    with EndpointHost(OneModel(served)) as host:
        async with openai.AsyncOpenAI(base_url=host.base_url, api_key=host.api_key) as client:
            await complete(client, [text for text, _ in prompts[:2]], 8)
            generate(adapted, [ids for _, ids in prompts[:2]], 8)
            for name, case in cases.items():
                texts, ids = zip(*case, strict=True)
                for _ in range(options.rounds):
                    rates[name][0].append(generate(adapted, list(ids), options.new_tokens))
                    rates[name][1].append(await complete(client, list(texts), options.new_tokens))
                theirs, ours = map(statistics.median, rates[name])
                print(f"{name:>17} {theirs:>14.1f} {ours:>10.1f} {ours / theirs:>6.2f}", flush=True)
    await engine.close()
    return {n: (statistics.median(a), statistics.median(b)) for n, (a, b) in rates.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE_MODEL)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'together':>17} {'generate+LoRA':>14} {'endpoint':>10} {'ratio':>6}   new tokens/s")
    rates = asyncio.run(measure(options))
    figures = {f"generate_lora_{n}": round(a, 1) for n, (a, _) in rates.items()}
    figures |= {f"endpoint_{n}": round(b, 1) for n, (_, b) in rates.items()}
    figures |= {f"ratio_{n}": round(b / a, 2) for n, (a, b) in rates.items()}
    held = figures["ratio_32"] >= TARGET_AT_32
    targets = {"ratio_32": TARGET_AT_32}
    print(json.dumps({"name": "rollouts", "figures": figures, "targets": targets, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
