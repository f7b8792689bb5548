"""A scripted judge at an OpenAI-compatible endpoint, for the figure of examples/auto_rl.py.

It reads RULER's prompt and scores the form of an answer only, not its meaning: half for one
sentence, and up to half for few words. `python docs/judge.py PROGRAM...` runs a program beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests" / "shared"))

from judge_server import judging

ATTEMPT = re.compile(r'<attempt id="(\d+)">\n(.*?)\n</attempt>', re.DOTALL)
FEWEST, FEW, MANY = 4, 12, 24


def score(answer: str) -> float:
    """Return a score in [0, 1] of an answer, the same whatever it is compared with."""
    words = len(answer.split())
    if words < FEWEST:
        return 0.0
    is_one = re.fullmatch(r"[^.!?\n]+[.!]", answer.strip()) is not None
    return 0.5 * is_one + 0.5 * min(1.0, max(0.0, (MANY - words) / (MANY - FEW)))


def verdict(request: dict[str, Any]) -> str:
    """Return the judge's answer to RULER's prompt."""
    shown = ATTEMPT.findall(request["messages"][-1]["content"])
    texts = {name: json.loads(message).get("content") or "" for name, message in shown}
    return json.dumps({"scores": [{"id": i, "score": score(text)} for i, text in texts.items()]})


if __name__ == "__main__":
    with judging(verdict) as server:
        environment = os.environ | {"OPENAI_BASE_URL": server.url}
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
