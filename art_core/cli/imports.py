"""`art import traces FILE`: recorded conversations as a file of trajectories."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError
from art_core.base.files import json_line, replacing
from art_core.cli.arguments import add_directory, output_file
from art_core.data.chat_file import refuse
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.reports.traces import FORMATS, Traces, read_traces
from art_core.reports.where import condition

_HELP = """\
FILE is OpenAI's JSON lines ({"messages": ...}, or {"request": ..., "response": ...}), spans of
OpenTelemetry (OTLP's JSON, or as an SDK prints them) with GenAI messages, an export of Langfuse
(traces with observations and scores, or observations), a trajectory file, or a run.

Each conversation becomes a trajectory. Its reward is the recording's score of that name; without
one the outcome is unknown, which is null in the file. --where compares reward, known, turns,
messages, metrics.NAME and metadata.NAME with constants; an unknown reward fulfills no comparison.

The file that is written trains a model: await model.train_sft("traces.jsonl")

examples:
  art import traces spans.json --out traces.jsonl
  art import traces langfuse.json --reward helpfulness --where "reward > 0.8 and turns < 10"
  art import traces agent-001 --split val --where "reward == 1"
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "import", help="make trajectories of what others recorded", epilog=_HELP
    )
    actions = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    traces = actions.add_parser(
        "traces", help="conversations: OpenAI, OpenTelemetry, Langfuse, a run", epilog=_HELP
    )
    traces.add_argument("file", metavar="FILE", help="a file, or a run's name or directory")
    traces.add_argument("--format", choices=[*FORMATS], help="default: that of the first record")
    traces.add_argument("--where", metavar="CONDITION", help='for example "reward > 0.8"')
    traces.add_argument("--reward", metavar="NAME", help="the score that is the reward")
    traces.add_argument("--split", default="train", help="of a run (train)")
    traces.add_argument(
        "--messages-only", action="store_true", help="leave out token ids and log-probs of a run"
    )
    traces.add_argument(
        "--skip-invalid", action="store_true", help="leave out what can't be read, with a warning"
    )
    traces.add_argument(
        "--out", metavar="FILE", type=output_file, help="default: FILE.trajectories.jsonl here"
    )
    add_directory(traces)
    traces.set_defaults(run=import_traces)


def import_traces(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Write the file and yield how many trajectories it has."""
    accepts = condition(arguments.where) if arguments.where else None
    source = Path(arguments.file)
    if source.is_file():
        traces = read_traces(source, arguments.format, arguments.reward)
    else:
        traces = _of_run(arguments, plugins)
    refuse(
        traces.problems,
        str(arguments.file),
        skip_invalid=arguments.skip_invalid,
        known=len(traces.trajectories),
    )
    chosen = [t for t in traces.trajectories if accepts is None or accepts(t)]
    if not chosen:
        raise ConfigError(
            f"none of the {len(traces.trajectories):,} trajectories of {arguments.file} fulfills "
            f"{arguments.where!r}"
        )
    out = arguments.out or Path(f"{source.stem}.trajectories.jsonl")
    _write(out, chosen, tokens=not arguments.messages_only)
    unknown = sum(math.isnan(t.reward) for t in chosen)
    values = {
        "file": out, "format": traces.format, "read": len(traces.trajectories),
        "trajectories": len(chosen), "unknown_outcomes": unknown,
    }  # fmt: skip
    text = (
        f"{len(chosen):,} of {len(traces.trajectories):,} trajectories ({traces.format}) in {out}"
    )
    yield Record(values, [f"{text}; the outcome of {unknown:,} is unknown"])


def _of_run(arguments: argparse.Namespace, plugins: Plugins) -> Traces:
    run = find_run(arguments.file, runs_path(arguments.dir), plugins.taxonomy())
    steps = run.steps(arguments.split)
    found: list[Trajectory] = []
    for step in steps:
        for group in run.groups(step, arguments.split):
            for trajectory in group:
                about = {"run": run.name, "step": step, **group.metadata}
                trajectory.metadata = {**about, **trajectory.metadata}
                found.append(trajectory)
    if not found:
        raise ConfigError(
            f"{run.name} has no trajectories of split {arguments.split!r}",
            f"Its splits are: {', '.join(run.splits()) or 'none'}.",
        )
    return Traces(format="run", trajectories=found, problems=[])


def _write(path: Path, trajectories: Sequence[Trajectory], *, tokens: bool) -> None:
    with replacing(path) as file:
        for trajectory in trajectories:
            file.write(json_line(TrajectoryGroup([trajectory]).to_dict(tokens=tokens)))
