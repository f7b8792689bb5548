"""A LoRA adapter against the base model on one vLLM server on CPU, at 32 concurrent requests.

    python benchmarks/vllm_lora.py [--model DIRECTORY_OR_NAME] [--repeats 2] [--stock]

vLLM and the plugin art-vllm-cpu are those of `art engines install vllm`. Requests have 128
prompt tokens, all different, and 64 new ones, in bf16. The base model, one adapter, and both half
and half are measured in turns on the same server; each figure is the best of `--repeats` turns.
`--stock` adds one turn on a server without the plugin, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REQUESTS, PROMPT, NEW = 32, 128, 64
KINDS = {"base": ["base"], "adapter": ["adapter"], "half and half": ["base", "adapter"]}
TARGETS = {"adapter_to_base_min": 0.6}


def turn(address: str, names: list[str], prompts: random.Random) -> float:
    """Return new tokens per second of one batch of requests, which take turns with the names."""
    from art_local.testing.vllm_server import ask

    def new_tokens(index: int) -> int:
        body = {
            "model": names[index % len(names)],
            "prompt": [prompts.randrange(100, 40_000) for _ in range(PROMPT)],
            "max_tokens": NEW,
            "temperature": 1.0,
            "ignore_eos": True,
        }
        return ask(address, "/v1/completions", body)["usage"]["completion_tokens"]

    started = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS) as pool:
        tokens = sum(pool.map(new_tokens, range(REQUESTS)))
    assert tokens == REQUESTS * NEW
    return tokens / (time.perf_counter() - started)


def measure(environment, model: Path, adapter: Path, *, env: dict[str, str], repeats: int):
    """Start a server; return the best tokens per second of each kind of batch."""
    from art_local.testing.vllm_server import PLUGIN_SAYS, load_adapter, lora_server

    log_file = adapter.parent / "server.log"
    log_file.unlink(missing_ok=True)
    options = ("--max-num-seqs", str(REQUESTS), "--no-enable-prefix-caching")
    server = lora_server(
        environment, model, log_file=log_file, dtype="bfloat16", env=env, options=options
    )
    with server as address:
        if (PLUGIN_SAYS in log_file.read_text()) != (not env):
            raise SystemExit(f"{environment.path} has no art-vllm-cpu that fits its vLLM")
        load_adapter(address, "adapter", adapter)
        prompts = random.Random(0)
        turn(address, ["adapter"], prompts)
        turns = [{k: turn(address, n, prompts) for k, n in KINDS.items()} for _ in range(repeats)]
    return {kind: max(figures[kind] for figures in turns) for kind in KINDS}


def report(figures: dict[str, dict[str, float]]) -> None:
    """Print the ratios as one line of JSON."""
    ratios = {}
    for name, found in figures.items():
        ratios[f"{name}_adapter_to_base"] = found["adapter"] / found["base"]
        ratios[f"{name}_half_and_half_to_base"] = found["half and half"] / found["base"]
    line = {
        "name": "vllm_lora",
        "figures": {**ratios, "tokens_per_s": figures},
        "targets": TARGETS,
        "held": ratios["plugin_adapter_to_base"] >= TARGETS["adapter_to_base_min"],
    }
    print(json.dumps(line))


def main() -> None:
    """Measure with the plugin, and without it when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--stock", action="store_true", help="measure vLLM without the plugin too")
    arguments = parser.parse_args()

    from art_local.models import resolve_base_model
    from art_local.testing.vllm_server import STOCK, save_random_adapter
    from art_local.vllm.install import environment_path, installed

    environment = installed()
    if environment is None or environment.variant != "cpu":
        reason = f"no vLLM for CPU in {environment_path()}: `art engines install vllm`"
        print(json.dumps({"name": "vllm_lora", "skipped": reason}))
        return
    model = resolve_base_model(arguments.model)
    with tempfile.TemporaryDirectory(prefix="vllm-lora-") as scratch:
        adapter = save_random_adapter(model, Path(scratch) / "adapter", seed=1)
        runs = {"plugin": ({}, arguments.repeats)}
        if arguments.stock:
            runs["stock"] = (STOCK, 1)
        figures = {}
        print(f"{'new tokens/s':14}" + "".join(f"{kind:>15}" for kind in KINDS))
        for name, (env, repeats) in runs.items():
            found = measure(environment, model, adapter, env=env, repeats=repeats)
            figures[name] = found
            print(f"{name:14}" + "".join(f"{found[kind]:15.1f}" for kind in KINDS), flush=True)
    report(figures)


if __name__ == "__main__":
    main()
