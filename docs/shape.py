"""Measure the shape of the code: folders, sizes, names, and the files that one value crosses.

`python docs/shape.py` prints the figures. `tests/test_shape.py` holds their limits.
"""

from __future__ import annotations

import ast
import asyncio
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
CORE = ROOT / "art_core"
AROUND = {
    "cli",
    "endpoint",
    "environments",
    "evaluation",
    "forecast",
    "gateway",
    "pipelines",
    "queue",
    "reports",
    "rewards",
    "testing",
}
"""Folders of the core that stand around the walk of a step."""
OPENERS = ("What", "How", "Which", "Where", "From", "For", "Who")
"""Words that begin a noun phrase where a sentence is due."""


def modules(root: Path = CORE) -> list[Path]:
    """Return the modules below a directory, by path."""
    return sorted(p for p in root.rglob("*.py") if ".venv" not in p.parts)


def line_count(file: Path) -> int:
    """Return the number of lines of a file."""
    return len(file.read_text().splitlines())


def core_proper() -> list[Path]:
    """Return the modules of the walk: the core without its endpoint, reports, cli and kits."""
    return [p for p in modules() if p.relative_to(CORE).parts[0] not in AROUND]


def packages() -> list[Path]:
    """Return the package directories: the core's and the plugins'."""
    return [CORE, *sorted(ROOT.glob("plugins/*/art_*"))]


def folder_of(module: str) -> str:
    """Return the folder of the core that a dotted module name belongs to."""
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> Iterator[str]:
    """Yield the modules of the core that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("art_core"):
            module = node.module or ""
            yield from (f"{module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("art_core."))


def folder_graph() -> dict[str, set[str]]:
    """Return the folders that each folder of the core imports."""
    graph: dict[str, set[str]] = {}
    for file in modules():
        parts = file.relative_to(CORE).parts
        own = parts[0].removesuffix(".py")
        if own in {"__init__", "__main__"}:
            continue
        graph.setdefault(own, set()).update(
            folder for module in imported(file) if (folder := folder_of(module)) not in {own, ""}
        )
    known = set(graph)
    return {own: found & known for own, found in graph.items()}


def circles() -> list[str]:
    """Return the folders that can reach themselves through imports."""
    graph = folder_graph()

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            folder = waiting.pop()
            if folder not in seen:
                seen.add(folder)
                waiting += graph[folder]
        return seen

    return sorted(folder for folder in graph if folder in reach(folder))


def openers() -> list[Path]:
    """Return the modules whose docstring begins with a question word."""
    found = []
    for package in packages():
        for file in modules(package):
            text = ast.get_docstring(ast.parse(file.read_text())) or ""
            if text.startswith(tuple(f"{word} " for word in OPENERS)):
                found.append(file)
    return found


def shared_names() -> dict[str, int]:
    """Return the names that more than two public classes have, with their number."""
    names: Counter[str] = Counter()
    for package in packages():
        for file in modules(package):
            names.update(
                node.name
                for node in ast.parse(file.read_text()).body
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
            )
    return {name: count for name, count in names.items() if count > 2}


@contextmanager
def files_entered(package: Path) -> Iterator[list[str]]:
    """Collect the files of a package whose functions run in the block, except those of `base`."""
    found: list[str] = []
    prefix = f"{package}/"
    ended = threading.Event()

    def enter(frame: Any, event: str, argument: Any) -> None:  # noqa: ARG001
        name = frame.f_code.co_filename
        # a thread that began in the block keeps its profiler
        if event == "call" and name.startswith(prefix) and not ended.is_set():
            path = name.removeprefix(prefix)
            if path.partition("/")[0] not in {*AROUND, "base"} and path not in found:
                found.append(path)

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        yield found
    finally:
        ended.set()
        sys.setprofile(None)
        threading.setprofile(None)


class _Notebook:
    """A sink that keeps its rows."""

    def __init__(self) -> None:
        self.arrived = threading.Event()

    def open(self, run: Any) -> None:
        """Begin."""

    def write(self, rows: list[Any]) -> None:  # noqa: ARG002
        """Note that rows arrived."""
        self.arrived.set()

    def close(self, run: Any) -> None:
        """End."""


def group_path() -> list[str]:
    """Return the files of the core proper that run between `model.log(groups)` and a sink."""
    return asyncio.run(_traced(_log_a_group))


def cost_path() -> list[str]:
    """Return the files of the core proper that run for one paid call of a tracked function."""
    return asyncio.run(_traced(_call_a_judge))


async def _traced(use: Callable[[Any, _Notebook], Any]) -> list[str]:
    import art_core as art
    from art_core.log import history

    sink = _Notebook()
    spec = art.SinkSpec(name="notebook", create=lambda: sink, summary="keeps rows")
    # on a busy machine the timer that syncs the log would run inside the block
    no_sync = patch.object(history, "SYNC_SECONDS", 3600.0)
    with no_sync, tempfile.TemporaryDirectory() as base:
        model = art.Model(name="shape", project="docs", base_path=base, sinks=[spec])
        await use(model, sink)  # imports and opens what the first use needs
        with files_entered(CORE) as found:
            await use(model, sink)
        await model.close()
    return found


async def _log_a_group(model: Any, sink: _Notebook) -> None:
    import art_core as art

    question = {"role": "user", "content": "Is water wet?"}
    attempts = [art.Trajectory(messages_and_choices=[question], reward=r) for r in (0.0, 1.0)]
    sink.arrived.clear()
    await model.log([art.TrajectoryGroup(attempts)], split="train", step=1)
    await asyncio.to_thread(sink.arrived.wait, 10)


async def _call_a_judge(model: Any, sink: _Notebook) -> None:  # noqa: ARG001
    import art_core as art

    @art.track_api_cost(source="judge", provider="openai", model_name="gpt-4.1")
    async def judge() -> dict[str, Any]:
        usage = {"prompt_tokens": 1000, "completion_tokens": 500}
        return {"object": "chat.completion", "usage": usage}

    with model.metrics_builder("train").activate_context():
        await judge()


def register_path() -> list[str]:
    """Return the files of art_local that run while `register` loads a tiny model, without what the
    trainer and the engine open when they are made.
    """
    helpers = ("models/device_memory.py", "models/products.py", "threads.py")
    inside = ("training/", "engine/", *helpers)
    return [file for file in asyncio.run(_register()) if not file.startswith(inside)]


async def _register() -> list[str]:
    import art_core as art
    import art_local.backend
    from art_local.testing.tiny import save_tiny_model

    package = Path(art_local.backend.__file__).parent
    with tempfile.TemporaryDirectory() as base:
        tiny = str(save_tiny_model(Path(base) / "tiny"))
        backend = art_local.backend.LocalBackend(device="cpu")
        options: dict[str, Any] = {"base_model": tiny, "base_path": base, "sinks": []}
        with files_entered(package) as found:
            model = art.TrainableModel(name="shape", project="docs", **options)
            await model.register(backend)
        await model.close()
        await backend.close()
    return found


def walk_files() -> set[str]:
    """Return the modules of the core that the walk page opens."""
    import re

    page = (ROOT / "docs" / "walk.md").read_text()
    return set(re.findall(r"`art_core/([a-z_/]+\.py)`", page))


def main() -> None:
    """Print the figures."""
    proper = core_proper()
    everything = [file for package in packages() for file in modules(package)]
    longest = max(everything, key=line_count)
    figures = {
        "folders of the core in a circle": ", ".join(circles()) or "none",
        "core proper": f"{sum(map(line_count, proper))} lines in {len(proper)} files",
        "longest module": f"{longest.relative_to(ROOT)}, {line_count(longest)} lines",
        "a group reaches a sink through": _shown(group_path()),
        "an API cost goes through": _shown(cost_path()),
        "`register` in local goes through": _shown(register_path()),
        "the walk page opens": _shown(sorted(walk_files())),
        "docstrings that begin with a question word": f"{len(openers())} of {len(everything)}",
        "names of more than two public classes": ", ".join(shared_names()) or "none",
    }
    for name, value in figures.items():
        print(f"{name}: {value}")


def _shown(files: list[str]) -> str:
    return f"{len(files)} files ({', '.join(files)})"


if __name__ == "__main__":
    main()
