"""Scenarios that a model writes for the tools of an MCP server, checked one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import art_core as art
from art_mcp.server import McpServer

_MAX_REQUESTS = 5
_LEVELS = range(1, 6)
_MIN_TASK = 10
_PROMPT = """\
You write tasks for an AI agent that works with these tools:

{tools}

Write {count} different tasks that a user could ask for and that can be solved with these tools. \
Vary what is asked, which tools are needed, and the difficulty: 1 needs one call, 5 needs many \
calls whose arguments come from earlier results. Do not name the tools in a task. {instructions}

Answer with a JSON list only. Each item: \
{{"task": "the user's request", "difficulty": 1 to 5, "tools": ["names of the tools"]}}"""


async def generate_scenarios(
    server: McpServer,
    n: int,
    *,
    model: Any,
    instructions: str = "",
    options: Mapping[str, Any] | None = None,
    max_requests: int = _MAX_REQUESTS,
) -> list[dict[str, Any]]:
    """Return `n` scenarios that a model wrote for a server's tools.

    Each has an `id`, a `task`, its `difficulty` from 1 to 5, and the names of the `tools` that it
    needs. A scenario that does not fit is left out, and the model is asked again: one without a
    task, with a difficulty outside 1 to 5, with tools that the server does not have, or whose task
    another one has. `model` is an `art.Model`; its calls are paid as usual. `instructions` go into
    the prompt, `options` into each request.

    Raises ConfigError for a server without tools, InfrastructureError for one that does not work,
    and RolloutError when `max_requests` requests give too few scenarios.
    """
    from art_mcp.connection import McpConnection

    if n < 1:
        raise art.ConfigError(f"generate_scenarios needs a number of at least 1, got {n!r}")
    connection = await McpConnection.open(server)
    tools = connection.tools
    await connection.close()
    if not tools:
        raise art.ConfigError(f"the MCP server {server.title!r} offers no tools")
    names = {tool.name for tool in tools}
    found: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for _ in range(max_requests):
        prompt = _prompt(tools, n - len(found), instructions, list(found))
        answer = await _answer(model, prompt, options or {})
        scenarios, new_problems = read_scenarios(answer, names, taken=found)
        problems += new_problems
        found |= {scenario["task"]: scenario for scenario in scenarios}
        if len(found) >= n:
            return list(found.values())[:n]
    last = f"; the last problem: {problems[-1]}" if problems else ""
    raise art.RolloutError(
        f"the model wrote {len(found)} of {n} scenarios in {max_requests} requests{last}",
        "Take a stronger model, or fewer scenarios.",
    )


def read_scenarios(
    answer: str, tools: Collection[str], taken: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the valid scenarios in a model's answer, and what is wrong with the others."""
    start, end = answer.find("["), answer.rfind("]")
    try:
        items = json.loads(answer[start : end + 1] if start >= 0 else answer)
    except ValueError:
        return [], [f"no JSON list: {answer!r:.80}"]
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for item in items if isinstance(items, list) else [items]:
        problem = _problem(item, tools, {*taken, *found})
        if problem:
            problems.append(f"{problem}: {item!r:.80}")
            continue
        task = item["task"].strip()
        name = hashlib.sha256(task.encode()).hexdigest()[:12]
        found[task] = {
            "id": name,
            "task": task,
            "difficulty": item["difficulty"],
            "tools": list(item["tools"]),
        }
    return list(found.values()), problems


def _problem(item: Any, tools: Collection[str], taken: Collection[str]) -> str:
    """Return what is wrong with a scenario, "" for nothing."""
    if not isinstance(item, Mapping):
        return "no object"
    task, level, needed = item.get("task"), item.get("difficulty"), item.get("tools")
    if not isinstance(task, str) or len(task.strip()) < _MIN_TASK:
        return f"no task of at least {_MIN_TASK} characters"
    if task.strip() in taken:
        return "a task that another scenario has"
    if isinstance(level, bool) or level not in _LEVELS:
        return "no difficulty from 1 to 5"
    if not isinstance(needed, list) or not needed:
        return "no list of tools"
    strange = [name for name in needed if not isinstance(name, str) or name not in tools]
    return f"no such tool {strange[0]!r}" if strange else ""


def _prompt(tools: Sequence[art.Tool], count: int, instructions: str, taken: Sequence[str]) -> str:
    described = "\n".join(
        json.dumps({"name": t.name, "description": t.description, "parameters": t.parameters})
        for t in tools
    )
    text = _PROMPT.format(tools=described, count=count, instructions=instructions).strip()
    if not taken:
        return text
    listed = "\n".join(f"- {task}" for task in taken)
    return f"{text}\n\nThese tasks exist already; write others:\n{listed}"


async def _answer(model: Any, prompt: str, options: Mapping[str, Any]) -> str:
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[{"role": "user", "content": prompt}], **options
    )
    (message,) = art.Trajectory(messages_and_choices=[completion.choices[0]]).messages()
    return message.get("content") or ""
