"""How near sampling and training come to what this CPU can do, with SmolLM2-135M in fp32.

    python benchmarks/roofline.py [--model DIRECTORY_OR_NAME] [--llama-server PATH --gguf FILE]

First it measures the machine: its fastest fp32 matrix product in torch, and the speed at which it
reads memory. Then it samples 64 tokens after short prompts with the embedded engine, 1, 8, 32 and
64 sequences together. The limit is the longer of two times: reading the weights and the keys and
values of each step, and multiplying. Training is a step on 16 sequences of 256 tokens, LoRA on all
linear layers; the products of the frozen weights count, forwards and for the input's gradient.

A conversation of ten turns, with another one in between, shows whether a turn costs what is new in
it. The same sampling next to a process that keeps all cores busy shows how it shares them. With
`--llama-server` and a GGUF file of the same weights in fp32 or f16, llama.cpp's server samples the
same numbers of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from art_local.threads import release_helpers
from art_local.torch_environment import set_torch_environment

set_torch_environment()

import torch  # noqa: E402

from art_core.endpoint.engine import Sampling  # noqa: E402
from art_local.engine import TransformersEngine  # noqa: E402
from art_local.models import resolve_base_model  # noqa: E402
from art_local.models.load import load_model, silence_logs  # noqa: E402
from art_local.models.placement import placement  # noqa: E402
from art_local.models.products import product  # noqa: E402

TOGETHER = (1, 8, 32, 64)
LLAMA_TOGETHER = (1, 8, 32)
SHARED = 8
PROMPT, NEW = 16, 64
TRAINED, LENGTH, RANK = 16, 256, 8
TURNS, TURN_TOKENS = 10, 48
TARGETS = {
    "decode_share_1_min": 0.5,
    "decode_share_8_min": 0.4,
    "decode_share_32_min": 0.5,
    "decode_share_64_min": 0.5,
    "train_share_min": 0.5,
    "turn_10_over_2_max": 1.3,
    "busy_slowdown_max": 2.5,
    "llama_ratio_1_min": 0.8,
    "llama_ratio_8_min": 1.0,
    "llama_ratio_32_min": 1.0,
}


def best(work: Any, repeats: int = 7) -> float:
    """The shortest time of some repeats, in seconds."""
    found = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found = min(found, time.perf_counter() - started)
    return found


def machine() -> dict[str, float]:
    """The fastest matrix product in GFLOP/s, and the speed of reading memory in GB/s."""
    a, b = torch.randn(2, 2048, 2048).unbind()
    seconds = min(best(lambda: a @ b), best(lambda: product(a, b)))
    large = torch.ones(100_000_000)
    read = best(large.sum)
    release_helpers()
    return {"gflops": 2 * 2048**3 / seconds / 1e9, "read_gb_per_s": 4e8 / read / 1e9}


def texts(count: int, length: int = PROMPT, first: int = 0) -> list[list[int]]:
    return [[10 + (7 * i + 31 * (n + first)) % 40_000 for i in range(length)] for n in range(count)]


async def sampled(engine: Any, prompts: list[list[int]], tokens: int = NEW) -> list[list[Any]]:
    sampling = Sampling(max_tokens=tokens, temperature=1.0, stream=False)

    async def one(prompt: list[int]) -> list[Any]:
        return [
            (token.id, time.perf_counter()) async for token in engine.generate(prompt, sampling)
        ]

    return await asyncio.gather(*map(one, prompts))


async def decode_seconds(engine: Any, count: int) -> tuple[float, float]:
    """Seconds of a token of all sequences, and the new tokens per second with their prompts."""
    found = []
    for repeat in range(3):
        started = time.perf_counter()
        answers = await sampled(engine, texts(count, first=1000 * count + 100 * repeat))
        whole = time.perf_counter() - started
        first = max(tokens[0][1] for tokens in answers)
        found.append(((answers[0][-1][1] - first) / (NEW - 1), count * NEW / whole))
    return min(seconds for seconds, _ in found), max(rate for _, rate in found)


def limit_seconds(sizes: dict[str, float], speed: dict[str, float], rows: int) -> float:
    """The least time of a token of so many rows."""
    read = sizes["weight_bytes"] + rows * (PROMPT + NEW / 2) * sizes["token_bytes"]
    return max(
        read / speed["read_gb_per_s"] / 1e9, 2 * rows * sizes["weights"] / speed["gflops"] / 1e9
    )


async def turns(engine: Any) -> float:
    """Seconds of a new token in turn 10 over those in turn 2, best of three conversations."""
    ratios = []
    for number in range(3):
        history, other, seconds = [], texts(1, 300, 500 + number)[0], []
        for turn in range(TURNS):
            history += texts(1, TURN_TOKENS, 50 * number + turn)[0]
            started = time.perf_counter()
            (answer,) = await sampled(engine, [history], 16)
            seconds.append(time.perf_counter() - started)
            history += [token for token, _ in answer]
            await sampled(engine, [other], 4)
        ratios.append(seconds[TURNS - 1] / seconds[1])
    return min(ratios)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores busy by another process."""
    code = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_seconds(model: Any) -> float:
    """The best of three steps after the first."""
    from art_core.rl.config import TrainConfig
    from art_core.rl.sequences import TokenSequence
    from art_local.training.policy import Policy
    from art_local.training.trainer import Trainer

    policy = Policy(model, dtype=torch.float32, lora=(RANK, 2 * RANK), seed=0)
    trainer = Trainer(policy, progress=False)
    sequences = [
        TokenSequence(
            token_ids=tuple(ids),
            trainable=(False, *[True] * (LENGTH - 1)),
            logprobs=(0.0, *[-3.0] * (LENGTH - 1)),
            advantage=1.0 if row % 2 else -0.5,
            weight=1 / LENGTH,
        )
        for row, ids in enumerate(texts(TRAINED, LENGTH))
    ]
    config = TrainConfig(learning_rate=1e-5)
    trainer.step(sequences, config)
    return best(lambda: trainer.step(sequences, config), 3)


async def llama_ratio(engine: Any, count: int, server: str, file: str) -> tuple[float, float]:
    """New tokens per second of llama.cpp's server with prompts, and the median ratio of ours to
    them; both in turns.
    """
    from art_local.testing.vllm_server import ask
    from art_local.vllm.server import free_port

    port = free_port()
    number = port.getsockname()[1]
    port.close()
    command = [server, "-m", file, "--host", "127.0.0.1", "--port", str(number)]
    command += ["-c", str(count * 256), "-np", str(count), "-t", str(os.cpu_count())]
    address = f"http://127.0.0.1:{number}"
    process = await asyncio.to_thread(started, command)
    asked = {"n_predict": NEW, "temperature": 1.0, "ignore_eos": True}

    def theirs(prompts: list[list[int]]) -> float:
        since = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            bodies = [{**asked, "prompt": ids} for ids in prompts]
            answers = list(pool.map(lambda body: ask(address, "/completion", body), bodies))
        tokens = sum(int(answer["tokens_predicted"]) for answer in answers)
        return tokens / (time.perf_counter() - since)

    try:
        await asyncio.to_thread(wait_ready, address, process)
        pairs = []
        for repeat in range(5):
            prompts = texts(count, first=3000 * count + 100 * repeat)
            their_rate = await asyncio.to_thread(theirs, prompts)
            since = time.perf_counter()
            await sampled(engine, prompts)
            pairs.append((their_rate, count * NEW / (time.perf_counter() - since)))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return max(t for t, _ in pairs), statistics.median(ours / t for t, ours in pairs)


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_ready(address: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        time.sleep(0.3)
    raise SystemExit(f"llama-server ended with status {process.returncode}")


async def measure(options: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}
    with silence_logs():
        model = load_model(
            resolve_base_model(options.model), placement("cpu", "float32"), torch.float32
        )
    sizes = sizes_of(model)
    model.generation_config.eos_token_id = None
    engine = TransformersEngine(model)
    await sampled(engine, texts(2, first=9), 8)
    for count in TOGETHER:
        speed = machine()
        alone, rate = await decode_seconds(engine, count)
        figures[f"decode_share_{count}"] = limit_seconds(sizes, speed, count) / alone
        print(
            f"{described(speed)}: decoding {count:2}: {count / alone:6.1f} tokens/s, "
            f"{figures[f'decode_share_{count}']:.2f} of the limit ({rate:.1f} with prompts)"
        )
        if count == SHARED:
            with busy_cores():
                slow, _ = await decode_seconds(engine, count)
            figures["busy_slowdown"] = slow / alone
            print(f"  next to busy cores: {slow / alone:.2f} times slower")
        if options.llama_server and count in LLAMA_TOGETHER:
            found = await llama_ratio(engine, count, options.llama_server, options.gguf)
            figures[f"llama_ratio_{count}"] = found[1]
            print(f"  llama.cpp: {found[0]:.1f} tokens/s with prompts; ours {found[1]:.2f} times")
    figures["turn_10_over_2"] = await turns(engine)
    print(f"turn 10 of a conversation: {figures['turn_10_over_2']:.2f} times turn 2")
    await engine.close()
    speed = machine()
    seconds = train_seconds(model)
    flops = 4 * sizes["weights"] * TRAINED * LENGTH
    figures["train_share"] = flops / seconds / 1e9 / speed["gflops"]
    print(
        f"{described(speed)}: training: {TRAINED * LENGTH / seconds:.0f} tokens/s, "
        f"{figures['train_share']:.2f} of the matrix product"
    )
    return {**speed, **figures}


def described(speed: dict[str, float]) -> str:
    return f"{speed['gflops']:.0f} GFLOP/s, {speed['read_gb_per_s']:.0f} GB/s"


def sizes_of(model: Any) -> dict[str, float]:
    """Weights of linear layers, their bytes, and the bytes of a token's keys and values."""
    linear = [part.weight for part in model.modules() if isinstance(part, torch.nn.Linear)]
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    return {
        "weights": sum(weight.numel() for weight in linear),
        "weight_bytes": sum(weight.numel() * weight.element_size() for weight in linear),
        "token_bytes": 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--llama-server", help="llama.cpp's server, for a comparison")
    parser.add_argument("--gguf", help="the same weights for llama.cpp, in fp32 or f16")
    options = parser.parse_args()
    if bool(options.llama_server) != bool(options.gguf):
        parser.error("--llama-server and --gguf belong together")
    figures = asyncio.run(measure(options))
    held = all(
        (figures[name[:-4]] >= target if name.endswith("_min") else figures[name[:-4]] <= target)
        for name, target in TARGETS.items()
        if name[:-4] in figures
    )
    rounded = {name: round(value, 2) for name, value in figures.items()}
    print(json.dumps({"name": "roofline", "figures": rounded, "targets": TARGETS, "held": held}))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
