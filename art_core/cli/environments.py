"""`art env`: which environments are installed, what they pay for, and one attempt at one."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from art_core.base.errors import ArtError, ConfigError, RolloutFailure
from art_core.cli.arguments import add_directory
from art_core.cli.check import check_target, listed_scenarios
from art_core.cli.evaluation import add_backend, import_target, opened_models, scenarios_in
from art_core.cli.person import Person, shown_messages
from art_core.data.trajectory import Trajectory
from art_core.environments.environment import makes_environments, rollout_of
from art_core.evaluation.attempts import by_id
from art_core.evaluation.evaluate import ModelAt, run_attempt
from art_core.hooks.commands import Column, ExitStatus, Output, Record, Table
from art_core.hooks.environments import EnvironmentSpec
from art_core.hooks.host import Plugins
from art_core.model.trainable import TrainableModel
from art_core.testing.echo import EchoBackend

_HELP = """\
An environment has the name that its plugin gives it, or is module:name or file.py:name of your own.

`list` shows the installed ones, and why one can't be imported. `check` plays one with scripted
models, as `art check` does. `play` plays one attempt: you answer in the terminal, or a model does
with --model: openai/NAME, a run, RUN@STEP or RUN@best. In the terminal, a line is an answer, and
/NAME {"argument": 1} calls a tool.

examples:
  art env list
  art env check verifiers/wordle --limit 4
  art env play my_game.py:Game
  art env play mcp/files --task "How many files are there?" --model openai/gpt-4.1-mini
"""
_COLUMNS = (
    Column(key="name", heading="environment"),
    Column(key="summary", wrap=True),
    Column(key="error", missing="", wrap=True),
)


def add(commands: Any) -> None:
    """Add the commands to the parser."""
    parser = commands.add_parser("env", help="list, check and play environments", epilog=_HELP)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the installed environments", epilog=_HELP)
    listing.set_defaults(run=list_environments)
    checking = actions.add_parser("check", help="play one with scripted models", epilog=_HELP)
    _add_name(checking)
    checking.add_argument("--answer", metavar="FIELD", help="the scenario's field of the answer")
    checking.add_argument("--limit", type=int, default=20, metavar="N", help="scenarios to try")
    checking.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one attempt")
    checking.set_defaults(run=check_named)
    playing = actions.add_parser(
        "play", help="play one attempt, or let a model do so", epilog=_HELP
    )
    _add_name(playing)
    playing.add_argument("--scenario", metavar="ID", help="which scenario (default: the first)")
    playing.add_argument("--task", metavar="TEXT", help="a text in place of a scenario")
    playing.add_argument("--model", metavar="NAME", help="the model that plays, in your place")
    add_backend(playing)
    playing.add_argument("--timeout", type=float, metavar="S", help="of the attempt")
    add_directory(playing)
    playing.set_defaults(run=play)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the environment's name, or file.py:name")
    parser.add_argument("--scenarios", type=Path, metavar="FILE", help="scenarios of your own")


def list_environments(_: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the table of environments; one that can't be imported is shown with its error."""
    rows = [
        {"name": spec.name, "summary": spec.summary, "error": _error(spec)}
        for _, spec in sorted(plugins.environments().items())
    ]
    rows += [
        {"name": f"(plugin {name})", "summary": "", "error": str(problem)}
        for name, problem in sorted(plugins.problems.items())
    ]
    empty = "no environment is installed; try: pip install art-mcp"
    yield Table(name="environments", rows=rows, columns=_COLUMNS, empty=empty)


def _error(spec: EnvironmentSpec) -> str | None:
    try:
        spec.load()
    except ArtError as error:
        return str(error)
    return None


def check_named(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield what scripted models found, and exit status 1 for any fault."""
    spec = _spec(arguments.name, plugins)
    target, scenarios = spec.load(), _scenarios(arguments, spec)
    yield from check_target(
        target,
        scenarios[: arguments.limit],
        answer=arguments.answer or spec.answer,
        timeout=arguments.timeout,
    )


def play(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Play one attempt; yield the reward, and exit status 1 for a failure."""
    spec = _spec(arguments.name, plugins)
    scenario = arguments.task or _chosen(_scenarios(arguments, spec), arguments.scenario)
    out = sys.stderr if getattr(arguments, "as_json", False) else sys.stdout
    person = Person(sys.stdin, out)
    yield from _shown(
        asyncio.run(_played(arguments, spec.load(), scenario, person)),
        whole=arguments.model is not None,
    )


def _shown(found: Trajectory | RolloutFailure, *, whole: bool) -> Iterator[Output]:
    if isinstance(found, RolloutFailure):
        values: dict[str, Any] = {"failure": found.reason, "message": str(found)}
        yield Record(values, [f"no reward, a failure ({found.reason}): {found}"])
        yield ExitStatus(1)
        return
    lines = [f"reward: {found.total_reward:.4g}"]
    lines += [f"{name}: {value:.4g}" for name, value in found.metrics.items()]
    if whole:
        lines = [*shown_messages(found.messages()), *lines]
    yield Record({"reward": found.total_reward, "metrics": dict(found.metrics)}, lines)


def _spec(name: str, plugins: Plugins) -> EnvironmentSpec:
    """Return an offered environment, or one of the user's module with its scenarios."""
    if ":" not in name:
        return plugins.environment(name)
    target, module = import_target(name)
    return EnvironmentSpec(
        name=name, target=target, summary="", scenarios=lambda: listed_scenarios(module)
    )


def _scenarios(arguments: argparse.Namespace, spec: EnvironmentSpec) -> list[Any]:
    found = scenarios_in(arguments.scenarios) if arguments.scenarios else spec.tasks()
    if not found:
        raise ConfigError(
            f"the environment {spec.name!r} has no scenarios of its own", "Give --scenarios FILE."
        )
    return found


def _chosen(scenarios: Sequence[Any], name: str | None) -> Any:
    if name is None:
        return scenarios[0]
    known = by_id(scenarios)
    if name not in known:
        listed = ", ".join(list(known)[:10])
        raise ConfigError(f"there is no scenario {name!r}; there are {listed}")
    return known[name]


async def _played(
    arguments: argparse.Namespace, target: Any, scenario: Any, person: Person
) -> Trajectory | RolloutFailure:
    slots = asyncio.Semaphore(1)
    limit = arguments.timeout
    if makes_environments(target):
        rollout = rollout_of(target)
        if arguments.model is None:
            return await run_attempt(rollout, person, scenario, limit, slots)
    else:
        rollout = target
    async with _model(arguments, person) as model:
        return await run_attempt(rollout, model, scenario, limit, slots)


@asynccontextmanager
async def _model(arguments: argparse.Namespace, person: Person) -> AsyncIterator[Any]:
    """Give the model that plays: a named one, or the person behind an endpoint on this machine."""
    if arguments.model is not None:
        async with opened_models(arguments) as models:
            model, step = await models.get(arguments.model)
            yield model if step is None else ModelAt(model, step)
        return
    backend = EchoBackend(reply=lambda messages, _: person.answer(messages))
    with tempfile.TemporaryDirectory(prefix="art-play-") as folder:
        model = TrainableModel(
            name="person", project="play", base_model="person", base_path=folder, sinks=[]
        )
        await model.register(backend)
        try:
            yield model
        finally:
            await model.close()
            await backend.close()
