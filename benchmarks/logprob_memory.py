"""Peak memory of log-probs at a vocabulary of 151,936: flat in rows, and against TRL's fused head.

    python benchmarks/logprob_memory.py [--trl-python PATH]

Forward and backward pass from hidden states [R, 512] to log-probs and entropies with a frozen fp32
head, in a process of its own for each R; the figure is how far its resident memory grows over what
the head and the hidden states take. TRL lives in an environment of its own:

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.16.0
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

VOCABULARY, HIDDEN, ROWS = 151_936, 512, (512, 2048, 8192)
INSTALL = (
    "python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl==1.16.0"
)
TARGETS = {"growth_over_rows_max": 1.5, "memory_over_trl_max": 1.1, "difference_max": 1e-4}


def resident() -> float:
    """Return this process's resident memory in GB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def measure(side: str, count: int) -> dict[str, float]:
    """Run one side here."""
    import torch

    torch.manual_seed(0)
    hidden_RH = torch.randn(count, HIDDEN)
    weight_VH = torch.randn(VOCABULARY, HIDDEN).mul_(0.05)
    targets_R = torch.randint(0, VOCABULARY, (count,))
    if side == "trl":
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

        def logprobs(h):
            return _ChunkedLogProbFunction.apply(
                h, weight_VH, None, targets_R, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0,
                ("log_probs", "entropy"),
            )[0]  # fmt: skip
    else:
        from art_local.training.logprobs import OutputHead, token_logprobs
        from art_local.training.trainer import CHUNK_ROWS

        def logprobs(h):
            head = OutputHead(weight_VH=weight_VH)
            return token_logprobs(h, head, targets_R, chunk_size=CHUNK_ROWS["cpu"])[0]

    hidden_RH.requires_grad_()
    before = resident()
    found_R = logprobs(hidden_RH)
    found_R.mean().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "gb": peak - before,
        "mean": float(found_R.detach().mean()),
        "gradient": float(hidden_RH.grad.norm()),
    }


def main() -> None:
    """Print a table, and one line of JSON as the last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", default=os.environ.get("TRL_PYTHON"))
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.rows)))
        return
    programs = {"ours": sys.executable}
    if arguments.trl_python:
        programs["trl"] = arguments.trl_python
    else:
        print(f"TRL is not installed: {INSTALL}\nthen give --trl-python trl/bin/python")
    found: dict[str, dict[int, dict[str, float]]] = {side: {} for side in programs}
    print(f"{'rows':>6}" + "".join(f"{side + ' GB':>10}" for side in programs))
    for count in ROWS:
        for side, program in programs.items():
            command = [program, __file__, "--side", side, "--rows", str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side][count] = json.loads(done.stdout.splitlines()[-1])
        line = "".join(f"{found[side][count]['gb']:10.3f}" for side in programs)
        print(f"{count:6}{line}", flush=True)
    first, last = ROWS[0], ROWS[-1]
    ours = found["ours"]
    compared = {"growth_over_rows": ours[last]["gb"] / ours[first]["gb"]}
    held = compared["growth_over_rows"] <= TARGETS["growth_over_rows_max"]
    if "trl" in found:
        trl = found["trl"]
        compared["memory_over_trl"] = max(ours[n]["gb"] / trl[n]["gb"] for n in ROWS)
        compared["difference"] = max(abs(ours[n]["mean"] - trl[n]["mean"]) for n in ROWS)
        held &= compared["memory_over_trl"] <= TARGETS["memory_over_trl_max"]
        held &= compared["difference"] <= TARGETS["difference_max"]
    line = {"name": "logprob_memory", "figures": {**compared, **found}, "targets": TARGETS}
    print(json.dumps(line | {"held": held if "trl" in found else None}))


if __name__ == "__main__":
    main()
