"""A server that only looks like vLLM's is a real process with real HTTP, and made-up tokens."""

from __future__ import annotations

import json
import urllib.request

from art_core.endpoint.engine import Sampling
from art_local.engine.protocol import StepWeights
from art_local.vllm.engine import ModelFacts
from waiting import alive, until

FACTS = ModelFacts(context_length=64, vocabulary=256, ends=(200,))
QUICK = {"start_s": 60.0, "load_s": 30.0, "sleep_s": 30.0, "backoff_s": 0.1, "restarts": 2}


def adapter(rank=4):
    """Weights of a step that consist of a config: the fake reads nothing else."""

    def write(directory):
        (directory / "adapter_config.json").write_text(json.dumps({"r": rank}))

    return StepWeights(merged=dict, write=write)


def state(engine):
    """The state that the fake reports."""
    with urllib.request.urlopen(f"{engine.server.client.url}/fake/state", timeout=5) as answer:
        return json.loads(answer.read())


async def sampled(engine, prompt=(10,), adapter_name="base", **sampling):
    given = Sampling(**{"max_tokens": 4, "stream": False, **sampling})
    return [token async for token in engine.generate(prompt, given, adapter_name)]


def gone(pid):
    """Wait until a process has ended, or is a zombie; True then."""
    until(lambda: not alive(pid))
    return True
