import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

QUIZ = '''
"""An environment package as others write it: questions, second tries, a tool."""

import verifiers as vf
from datasets import Dataset

ROWS = [
    {"question": "What is 2 + 3?", "answer": "5"},
    {"question": "What is 4 + 4?", "answer": "8"},
]


def right(completion, answer, **kwargs):
    answers = [m["content"] for m in completion if m["role"] == "assistant"]
    return float(answers[-1] == answer)


def length(completion, **kwargs):
    return len(str(completion[-1]["content"]))


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


class Retry(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **kwargs):
        if messages[-1]["content"] == state["answer"]:
            state["final_env_response"] = [{"role": "user", "content": "Right."}]
        return [{"role": "user", "content": "Try again."}]


def failing(completion, **kwargs):
    raise ConnectionError("the judge is down")


def grouped(completions, **kwargs):
    return [0.0 for _ in completions]


class Down(Retry):
    async def setup_state(self, state, **kwargs):
        raise vf.SandboxError("no sandbox")


def load_environment(kind="single"):
    rubric = vf.Rubric(funcs=[right, length], weights=[1.0, 0.0])
    options = {"dataset": Dataset.from_list(ROWS), "system_prompt": "Answer with a number."}
    if kind == "tools":
        return vf.ToolEnv(tools=[add], rubric=rubric, max_turns=3, **options)
    if kind == "retry":
        return Retry(rubric=rubric, max_turns=3, **options)
    if kind == "down":
        return Down(rubric=rubric, max_turns=3, **options)
    funcs = {"failing": [right, failing], "grouped": [grouped]}.get(kind)
    return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=funcs) if funcs else rubric, **options)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install an environment package that requires verifiers: `install(name, code)`."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name, code=QUIZ):
        module = name.replace("-", "_")
        made.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\nSummary: sums\n"
            "Requires-Dist: verifiers>=0.1\n"
        )
        return name

    yield write
    for module in made:
        sys.modules.pop(module, None)
