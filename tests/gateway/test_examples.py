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
NPM = os.environ.get("DOORS_NPM", "")
"""A folder with the packages of npm that agent.ts imports; `make doors` makes it."""
LOOKS_UP = {
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "lookUp", "arguments": '{"word": "sky"}'},
        }
    ]
}


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
    command = [agent[0], str(EXAMPLES / agent[1])]
    await trains_a_step(command, lambda messages, step: next(answers), tmp_path, capsys)


@pytest.mark.skipif(not NPM, reason="DOORS_NPM is not set: `make doors` sets it")
async def test_an_unmodified_program_in_typescript_trains_a_step(tmp_path, capsys):
    answers = itertools.cycle([LOOKS_UP, "yes", LOOKS_UP, "maybe"])
    program = shutil.copy(EXAMPLES / "agent.ts", Path(NPM))
    tsx = str(Path(NPM) / "node_modules" / ".bin" / "tsx")
    command = ["sh", str(EXAMPLES / "attempt.sh"), tsx, str(program)]
    # The tokens of an echo's call are no beginning of the next prompt: each answer is a sequence.
    await trains_a_step(
        command, lambda messages, step: next(answers), tmp_path, capsys, sequences=4
    )


async def test_a_program_that_fails_is_a_failure_of_its_attempt(tmp_path, capsys):
    command = ["sh", str(EXAMPLES / "attempt.sh"), "false"]
    with pytest.raises(AssertionError, match="the program failed"):
        await trains_a_step(command, lambda messages, step: "yes", tmp_path, capsys)


async def trains_a_step(command, reply, tmp_path, capsys, sequences=2):
    backend = EchoBackend(reply=reply)
    program = runpy.run_path(str(EXAMPLES / "train.py"), run_name="example")
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
    assert row.metrics["data/step_num_sequences"] == sequences
    assert row.metrics["reward/exception_rate"] == 0
