"""Claude Code and Codex, where they are installed: a command and its result."""

import asyncio
import json
import os
import shutil

import pytest

CLAUDE = ["claude", "-p", "How much is 1 + 2?", "--max-turns", "3", "--allowedTools", "Bash"]
CODEX = [
    "codex", "exec", "--skip-git-repo-check", "--disable", "multi_agent",
    "-c", 'web_search="disabled"', "-c", 'model_provider="art"',
]  # fmt: skip


def calling(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def output_of(command, place, environment):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=place, env=os.environ | {"HOME": str(place)} | environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()
    return output.decode().strip()


async def test_claude_code_runs_a_command(door, tmp_path):
    lines = calling("Bash", command="expr 1 + 2", description="add"), "3"
    async with door.opened(*lines, turns=[2]) as endpoint:
        environment = {
            "ANTHROPIC_BASE_URL": endpoint.base_url.removesuffix("/v1"),
            "ANTHROPIC_API_KEY": endpoint.api_key,
            "ANTHROPIC_MODEL": endpoint.model_name,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": endpoint.model_name,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        assert await output_of(CLAUDE, tmp_path, environment) == "3"


async def test_codex_runs_a_command(door, tmp_path):
    (tmp_path / ".codex").mkdir()
    async with door.opened(calling("exec_command", cmd="expr 1 + 2"), "3", turns=[2]) as endpoint:
        provider = (
            f'{{name="art", base_url="{endpoint.base_url}", env_key="OPENAI_API_KEY", '
            'wire_api="responses", stream_max_retries=0}'
        )
        command = [*CODEX, "-c", f"model_providers.art={provider}", "-m", endpoint.model_name]
        environment = {"OPENAI_API_KEY": endpoint.api_key}
        assert await output_of([*command, "1 + 2?"], tmp_path, environment) == "3"
