"""Scenarios of the task directories in a folder, with their solutions as right turns."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

from art_core import ConfigError
from art_harbor.machine import pack
from art_harbor.task import HarborTask


def harbor_scenarios(folder: str | Path) -> list[dict[str, Any]]:
    """Return a scenario for each task directory in a folder, by name: its `id` and `path`, and in
    `answer` the turns that solve it, if it has a `solution/solve.sh`. Raises ConfigError for a
    folder without tasks, and for a task that can't be read.
    """
    place = Path(folder)
    found = [place] if (place / "task.toml").is_file() else sorted(place.glob("*/"))
    tasks = [HarborTask.read(each) for each in found if (each / "task.toml").is_file()]
    if not tasks:
        raise ConfigError(f"there is no task directory (with a task.toml) in {place}")
    return [
        {"id": task.name, "path": str(task.folder), **({"answer": turns} if turns else {})}
        for task in tasks
        for turns in [solution_turns(task)]
    ]


def solution_turns(task: HarborTask) -> list[dict[str, Any]]:
    """Return the turns of a model that unpacks a task's solution and runs it; [] without one."""
    if not (task.solution / "solve.sh").is_file():
        return []
    packed = base64.b64encode(pack(task.solution)).decode()
    variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in task.solution_env.items())
    command = (
        f"mkdir -p /solution && echo {packed} | base64 -d | tar -x -C /solution && "
        f"chmod +x /solution/solve.sh && {variables} /solution/solve.sh"
    )
    function = {"name": "bash", "arguments": json.dumps({"command": command})}
    call = {"id": "call_1", "type": "function", "function": function}
    done = {"role": "assistant", "content": "Done."}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}, done]
