"""`art skill`: the commands, options and metrics that it names exist."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest

import art_core as art
from art_core.cli.main import main, parser
from art_core.testing.echo import EchoBackend


@pytest.fixture
def text(capsys):
    assert main(["skill"], art.Plugins()) == 0
    return capsys.readouterr().out


def test_it_is_installed_and_updated(tmp_path, capsys, text):
    for _ in range(2):
        assert main(["skill", "--into", str(tmp_path / "skills")], art.Plugins()) == 0
        file = Path(capsys.readouterr().out.strip())
        assert file == tmp_path / "skills" / "art-core" / "SKILL.md"
        assert file.read_text().strip() == text.strip()
        file.write_text("an earlier version")


def test_it_begins_as_a_skill_does(text):
    _, head, _ = text.split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert fields["name"] == "art-core"
    assert 50 < len(fields["description"]) < 1024
    assert f"# art-core {art.__version__}\n" in text


def test_the_commands_and_options_that_it_names_exist(text):
    host = art.Plugins()
    known = parser(host)
    commands = re.findall(r"`art ([a-z][^`]*)`", text)
    assert len(commands) > 12
    for command in commands:
        words = shlex.split(command)
        if words == ["mcp"]:
            continue  # art-mcp offers it
        action = known._subparsers._group_actions[0].choices[words[0]]
        options = action._option_string_actions
        assert [word for word in words if word.startswith("--") and word not in options] == []


def test_the_metrics_that_it_names_exist(text, capsys):
    assert main(["metrics", "--json"], art.Plugins()) == 0
    known = {metric["key"] for metric in json.loads(capsys.readouterr().out)["metrics"]}
    named = re.findall(r"`((?:data|loss)/\w+)`", text)
    assert named
    assert set(named) <= known


def test_its_rollout_runs_and_is_rewarded(text, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(code, found)

    async def play():
        async with art.TrainableModel(
            name="test", project="test", base_model="none", base_path=tmp_path, sinks=[]
        ) as model:
            await model.register(EchoBackend(reply=lambda messages, step: "yes"))
            scenario = {"question": "Is fire hot?", "answer": "yes"}
            return await found["rollout"](model, scenario)

    attempt = asyncio.run(play())
    assert attempt.reward == 1.0
    assert attempt.messages()[-1]["content"] == "yes"
