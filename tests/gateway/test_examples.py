"""The examples' agents, in a shell and in JavaScript, train a step."""

from __future__ import annotations

import asyncio
import itertools
import os
import runpy
import shutil
from pathlib import Path

import pytest

import art_core as art
from art_core.log.rows import read_rows
from art_core.testing.echo import EchoBackend

EXAMPLES = Path(__file__).parents[2] / "examples" / "gateway"


async def attempt(command, environment):
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize(
    ("interpreter", "agent"), [("curl", ["sh", "agent.sh"]), ("node", ["node", "agent.mjs"])]
)
async def test_agents_in_other_languages_train_a_step(tmp_path, capsys, interpreter, agent):
    if shutil.which(interpreter) is None:
        pytest.skip(f"{interpreter} is not installed")
    answers = itertools.cycle(["yes", "maybe"])
    backend = EchoBackend(reply=lambda messages, step: next(answers))
    program = runpy.run_path(str(EXAMPLES / "train.py"), run_name="example")
    command = [agent[0], str(EXAMPLES / agent[1])]
    async with art.TrainableModel(
        name="agent", project="p", base_model="base", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        training = asyncio.create_task(program["train"](model, steps=1, size=2))
        printed = ""
        while "GATEWAY_KEY" not in printed:
            await asyncio.sleep(0.01)
            assert not training.done()
            printed += capsys.readouterr().out
        lines = [line.removeprefix("export ") for line in printed.splitlines()]
        environment = dict(line.split("=", 1) for line in lines)
        for _ in range(2):
            await attempt(command, environment)
        await training
        (row,) = [row for row, _ in read_rows(model.run_dir / "history.jsonl")]
    await backend.close()
    assert row.metrics["reward/mean"] == 0.5
    assert row.metrics["data/step_num_sequences"] == 2
    assert row.metrics["reward/exception_rate"] == 0
