"""A server that only looks like vLLM's is a real process with real HTTP, and made-up tokens."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

from art_core.endpoint.engine import Sampling
from art_local.engine.local import StepWeights
from art_local.vllm.engine import ModelFacts

FACTS = ModelFacts(context_length=64, vocabulary=256, ends=(200,))
QUICK = {"start_s": 20.0, "load_s": 5.0, "sleep_s": 5.0, "backoff_s": 0.1, "restarts": 2}


def adapter(rank=4):
    """Weights of a step that are no more than a config: the fake reads nothing else."""

    def write(directory):
        (directory / "adapter_config.json").write_text(json.dumps({"r": rank}))

    return StepWeights(merged=dict, write=write)


def state(engine):
    """What the fake says of itself."""
    with urllib.request.urlopen(f"{engine.server.client.url}/fake/state", timeout=5) as answer:
        return json.loads(answer.read())


async def sampled(engine, prompt=(10,), adapter_name="base", **sampling):
    given = Sampling(**{"max_tokens": 4, "stream": False, **sampling})
    return [token async for token in engine.generate(prompt, given, adapter_name)]


def gone(pid, within_s=10.0):
    """Whether a process ends, or is a zombie, in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
