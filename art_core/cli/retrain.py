"""`art retrain` and `art sweep`: other options on attempts that are paid for."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.base.progress import progress_bar
from art_core.budgets.budget import Budget
from art_core.cli.arguments import add_budget, add_directory, add_run, given_budget, output_file
from art_core.cli.plot import write_figure
from art_core.evaluation.retrain import (
    COMPARED,
    MIN_SAMPLE_SIZE,
    SAMPLE_SIZE,
    Retrained,
    RetrainedStep,
    retrain,
)
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import runs_path
from art_core.model.backend import backend as make_backend
from art_core.reports.curves import Curve

_RETRAIN_HELP = """\
Trains the steps of RUN again from its stored attempts, as a run of its own: no rollout and no judge
is paid. Each step takes the options that it was trained with, changed by --set. It stops where the
effective sample size of the attempts is below --min-sample-size, since they come from the policy of
RUN. --backend-set gives the backend the options that RUN's had.

examples:
  art retrain agent-001 --steps 1:12 --set loss_fn=gspo --set learning_rate=3e-5
  art retrain agent-001 --set kl_penalty_coef=0.05 --name agent-001-kl --out curves.png
  art retrain agent-001 --backend local --backend-set dtype=float32 --backend-set lora_rank=8
"""
_SWEEP_HELP = """\
Retrains RUN once for each combination of the grid's values and lists them, the lowest last loss
first. Losses of one loss function compare; those of several do not.

examples:
  art sweep --from agent-001 --grid learning_rate=1e-5,3e-5,1e-4 --steps 1:8
  art sweep --from agent-001 --grid loss_fn=cispo,gspo --grid learning_rate=1e-5,3e-5
"""
_COLUMNS = (
    Column(key="step", right=True),
    Column(key="loss", form=".5f", right=True),
    Column(key="original_loss", heading="original", form=".5f", right=True),
    Column(key="sample_size", heading="sample size", form=".3f", right=True),
    Column(key="ratio_p95", heading="ratio p95", form=".3f", right=True, rank=1),
    Column(key="ratio_p99", heading="ratio p99", form=".3f", right=True, rank=1),
    Column(key="kl", form=".5f", right=True, rank=2),
)
_SHORT = {
    "loss/train": "loss", SAMPLE_SIZE: "sample_size", "loss/importance_ratio_p95": "ratio_p95",
    "loss/importance_ratio_p99": "ratio_p99", "loss/kl_k3": "kl",
}  # fmt: skip


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    parser = commands.add_parser(
        "retrain", help="train stored attempts again, with other options", epilog=_RETRAIN_HELP
    )
    add_run(parser)
    parser.add_argument(
        "--name", dest="as_name", metavar="NAME", help="the new run's name (RUN-retrained)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of training"
    )
    parser.add_argument("--out", metavar="FILE", type=output_file, help="plot both runs' curves")
    _add_training(parser)
    parser.set_defaults(run=run_retrain)
    parser = commands.add_parser(
        "sweep", help="retrain with each combination of options", epilog=_SWEEP_HELP
    )
    parser.add_argument("--from", dest="name", metavar="RUN", required=True, help="the run")
    add_directory(parser)
    parser.add_argument(
        "--grid", action="append", required=True, metavar="OPTION=A,B",
        help="values of an option; each --grid multiplies the combinations",
    )  # fmt: skip
    _add_training(parser)
    parser.set_defaults(run=run_sweep)


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=_span, metavar="A:B", help="the steps (all that are stored)"
    )
    parser.add_argument("--backend", metavar="NAME", default="local", help="(%(default)s)")
    parser.add_argument(
        "--backend-set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the backend",
    )  # fmt: skip
    parser.add_argument(
        "--min-sample-size", type=float, default=MIN_SAMPLE_SIZE, metavar="SHARE",
        help="stop below this effective sample size (%(default)s)",
    )  # fmt: skip
    add_budget(parser)


def _span(text: str) -> list[int]:
    first, colon, last = text.partition(":")
    if not first.isdecimal() or (colon and not last.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps; give one like 1:12")
    return list(range(int(first), int(last or first) + 1))


def run_retrain(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Retrain, and yield each step beside the original."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    name = arguments.as_name or f"{run.path.name}-retrained"
    done = _retrained(arguments, run, name, option_values(arguments.set), given_budget(arguments))
    rows = [_row(step) for step in done.steps]
    yield Table(name="steps", rows=rows, columns=_COLUMNS)
    yield Record({"run": done.run.name, "original": run.name, "stopped": done.stopped}, [])
    if done.stopped:
        yield f"stopped: {done.stopped}"
    if arguments.out is not None:
        write_figure(_curves(done), "step", "", arguments.out)
        yield Record({"file": arguments.out}, [str(arguments.out)])
    else:
        yield f"art plot {run.name} {done.run.name} loss/train {SAMPLE_SIZE}"


def run_sweep(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Retrain with each combination, and yield their last steps."""
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    grid, budget = _grid(arguments.grid), given_budget(arguments)
    rows = []
    for number, combination in enumerate(grid, start=1):
        shown = " ".join(f"{option}={value}" for option, value in combination.items())
        name = f"{run.path.name}-sweep-{number:03d}"
        done = _retrained(arguments, run, name, combination, budget)
        if budget is not None and budget.file is None:
            usd = done.run.costs().total.get("all", 0.0)
            budget = attrs.evolve(budget, usd=max(0.0, budget.usd - usd))
        last = _row(done.steps[-1])
        rows.append(
            {**last, "run": done.run.name, "options": shown, "stopped": done.stopped is not None}
        )
    rows.sort(key=lambda row: (row["stopped"], row["loss"] is None, row["loss"]))
    columns = (Column(key="run"), Column(key="options", wrap=True), *_COLUMNS)
    yield Table(name="runs", rows=rows, columns=(*columns, Column(key="stopped")))


def _retrained(
    arguments: argparse.Namespace,
    run: LoggedRun,
    name: str,
    options: Mapping[str, Any],
    budget: Budget | None,
) -> Retrained:
    total = len(arguments.steps or [step for step in run.steps("train") if step > 0])

    async def trained() -> Retrained:
        backend = make_backend(arguments.backend, **option_values(arguments.backend_set))
        try:
            with progress_bar(total=total, desc=f"retrain {name}", unit="step") as bar:
                return await retrain(
                    run, arguments.steps, name=name, backend=backend,
                    min_sample_size=arguments.min_sample_size, budget=budget,
                    on_step=lambda _: bar.update(1), **options,
                )  # fmt: skip
        finally:
            await backend.close()

    return asyncio.run(trained())


def _row(done: RetrainedStep) -> dict[str, Any]:
    values = {short: done.metrics.get(key) for key, short in _SHORT.items()}
    return {"step": done.step, **values, "original_loss": done.original.get("loss/train")}


def _curves(done: Retrained) -> list[Curve]:
    lines = []
    for run in (done.original, done.run):
        curves = run.timeline(lambda key: key in COMPARED).curves()
        for key in ("loss/train", SAMPLE_SIZE, "loss/importance_ratio_p99"):
            points = sorted(curves.get(key, {}).items())
            lines.append(
                Curve(f"{run.name} {key}", [step for step, _ in points], [y for _, y in points])
            )
    return lines


def option_values(pairs: Sequence[str]) -> dict[str, Any]:
    """Read OPTION=VALUE pairs; ConfigError for a text without an equals sign."""
    found = {}
    for pair in pairs:
        option, equals, text = pair.partition("=")
        if not equals or not option:
            raise ConfigError(f"{pair!r} is no OPTION=VALUE", "Give one like learning_rate=3e-5.")
        found[option] = _value(text)
    return found


def _value(text: str) -> Any:
    """Read a number, true, false or null as JSON does, else the text itself."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false", "none") else text)
    except ValueError:
        return None if text.lower() == "none" else text


def _grid(pairs: Sequence[str]) -> list[dict[str, Any]]:
    options = {}
    for pair in pairs:
        option, equals, texts = pair.partition("=")
        if not equals or not option or not all(texts.split(",")):
            raise ConfigError(
                f"{pair!r} is no OPTION=A,B", "Give one like learning_rate=1e-5,3e-5."
            )
        options[option] = [_value(text) for text in texts.split(",")]
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]
