"""`art check TARGET`: what a reward or an environment pays for, before the first paid step."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.evaluation import import_target, scenarios_in
from art_core.cli.judges import add_judges, check_judges
from art_core.cli.text import counted
from art_core.environments.environment import makes_environments
from art_core.hooks.commands import Column, ExitStatus, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.testing.check import CheckReport, check
from art_core.testing.episodes import check_environment
from art_core.testing.scripts import RIGHT

_HELP = """\
Scripted models take the model's place, on this machine: one answers correctly, others answer
nothing, repeat the prompt, list every answer, deny it, address the judge, or always answer the same
word. The right answer must get the highest reward, and no constant answer the full one. Judges that
the reward calls are real, and cost as usual.

TARGET is module:name or file.py:name: an async function of a model and a scenario, or an
environment (its class, or a function that makes one). An environment must also begin a scenario in
the same way each time, keep episodes apart, answer broken tool calls, and end. The scenarios are
those of --scenarios, else the list SCENARIOS, QUESTIONS or TASKS of the module. A scenario's field
`answer` (--answer) holds the right answer, or a list of turns; --answer may also name a function of
the module that returns it.

With --judges and --pairs, judges are checked: each compares the two answers of every pair in both
orders, and once more. A pair is a JSON object with `better`, `worse` and perhaps `question`.
agreement is the share of pairs in which the judge prefers the better answer over both orders,
consistency the share with the same preference in both orders, repeatability in both tries. These
calls are real and paid.

The exit status is 1 when there is a fault, or when no judge of known price agrees.

examples:
  art check my_agent:rollout --scenarios val.jsonl
  art check examples/yes_no_maybe.py:rollout
  art check my_agent:rollout --scenarios val.jsonl --answer label --limit 10
  art check my_game.py:Game --answer right_moves
  art check --judges openai/gpt-4.1-mini,openai/gpt-4.1 --pairs pairs.jsonl
"""
_ANSWER = "answer"
_LISTS = ("SCENARIOS", "QUESTIONS", "TASKS")
_COLUMNS = (
    Column(key="model", heading="a model that"),
    Column(key="reward", form=".4g", right=True),
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "check", help="try a reward, an environment or judges before paying", epilog=_HELP
    )
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", help="the rollout or the environment"
    )
    parser.add_argument("--scenarios", type=Path, metavar="FILE")
    parser.add_argument("--answer", default=_ANSWER, metavar="FIELD")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="scenarios to try")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one attempt")
    add_judges(parser)
    parser.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Yield the rewards of the scripted models, the faults, and exit status 1 for any fault."""
    if arguments.target is None:
        yield from check_judges(arguments)
        return
    target, module = import_target(arguments.target)
    given = arguments.scenarios
    scenarios = scenarios_in(given) if given else listed_scenarios(module)
    yield from check_target(
        target,
        scenarios[: arguments.limit],
        answer=_answer(arguments.answer, module),
        timeout=arguments.timeout,
    )


def check_target(
    target: Any, scenarios: Sequence[Any], *, answer: Any, timeout: float
) -> Iterator[Output]:
    """Yield what scripted models found in a rollout or an environment; exit status 1 for faults."""
    checking: Any = check_environment if makes_environments(target) else check
    yield from _shown(asyncio.run(checking(target, scenarios, answer=answer, timeout=timeout)))


def _answer(name: str, module: ModuleType) -> Any:
    """Return the module's function of that name, else the name, which is a scenario's field."""
    function = getattr(module, name, None) if name != _ANSWER else None
    return function if callable(function) else name


def _shown(found: CheckReport) -> Iterator[Output]:
    rows = [{"model": name, "reward": reward} for name, reward in found.rewards.items()]
    rows.sort(key=lambda row: (row["model"] != RIGHT, -_or_lowest(row["reward"])))
    yield Table(name="rewards", rows=rows, columns=_COLUMNS)
    yield ""
    lines = [f"fault ({fault.kind}): {fault.text}" for fault in found.faults]
    lines += [f"note: {note}" for note in found.notes]
    attempts = counted(found.attempts, "attempt")
    lines.append(f"{attempts}, {found.usd_per_attempt:.6f} US dollars per attempt")
    values = {
        "faults": [attrs.asdict(fault) for fault in found.faults],
        "notes": list(found.notes),
        "attempts": found.attempts,
        "usd_per_attempt": found.usd_per_attempt,
    }
    yield Record(values, lines)
    if found.faults:
        yield ExitStatus(1)


def _or_lowest(reward: Any) -> float:
    return float(reward) if reward == reward else float("-inf")  # noqa: PLR0124


def listed_scenarios(module: ModuleType) -> list[Any]:
    """Return the scenarios that a module lists; ConfigError when it lists none."""
    for name in _LISTS:
        if hasattr(module, name):
            return list(getattr(module, name))
    raise ConfigError(
        f"{module.__name__} has no list of scenarios", f"Give --scenarios, or {_LISTS[0]} there."
    )
