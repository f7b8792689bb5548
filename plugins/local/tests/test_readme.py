"""The loop of the README learns its task on a CPU, and continues when it is run again."""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path

import pytest

from art_core.log.rows import read_rows

README = Path(__file__).parents[3] / "README.md"
STEPS = 8

pytestmark = [pytest.mark.slow, pytest.mark.torch]


def run_with_top_level_await(source: str) -> None:
    code = compile(source, str(README), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    asyncio.run(eval(code, {}))


def rewards_of(history: Path) -> list[float]:
    return [row.metrics["reward/mean"] for row, *_ in read_rows(history)]


def test_the_loop_learns_and_continues_when_it_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    loop = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    history = tmp_path / "demo" / "models" / "first-loop" / "history.jsonl"

    run_with_top_level_await(loop)
    rewards = rewards_of(history)
    assert len(rewards) == STEPS
    # Each is a mean of 16 attempts that answer at random: about 0.1 at first, 0.9 in the end.
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.25

    longer = loop.replace(f", {STEPS})", f", {STEPS + 1})")
    run_with_top_level_await(longer)
    assert rewards_of(history)[:STEPS] == rewards
    assert len(rewards_of(history)) == STEPS + 1
