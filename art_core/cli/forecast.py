"""`art forecast`: what a run will use up to a step or a reward, with intervals."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_budget, add_directory, limited
from art_core.cli.completion import completed, run_names
from art_core.cli.evaluation import add_backend, imported, scenarios_in
from art_core.cli.pilots import (
    PilotRun,
    PilotTask,
    changes,
    of_project,
    offers,
    run_pilots,
    task_of,
    verdict,
)
from art_core.cli.project import FILE, read_project
from art_core.cli.text import counted, sized
from art_core.costs.builder import PriceBook
from art_core.forecast.forecast import Forecast, Line, forecast
from art_core.forecast.interval import Interval
from art_core.forecast.pilot import PlannedRun, cheapest, planned_lines
from art_core.forecast.reach import Reach, reach
from art_core.forecast.usage import REWARDS, Usage, read_usage
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.reports.reprice import Prices

_HELP = """\
WHAT is a run: its steps and evaluations are the sample of what is to come. Dollars are at today's
prices by the run's receipts; tokens by kind, hours and bytes follow. Each has the interval in which
it lies with 50 % and with 90 %. A trend, such as of longer attempts, goes on. With --to-reward the
curve of val/reward, else that of reward/mean, is continued; where the data show no answer, the
output states so.

Or WHAT is a rollout, as module:function, or a project's directory with an art.toml. Before the
first step a few pilot attempts are made, and paid, and steps are trained on them; the output
compares what they cost here with the prices of hosted training.

examples:
  art forecast agent-001 --to-step 200
  art forecast agent-001 --to-reward 0.8
  art forecast agent-001 --to-step 200 --json | jq '.costs[] | select(.name == "all").high90'
  art forecast demo --pilots 16 --steps 100
  art forecast my_agent:rollout --scenarios train.jsonl --model Qwen/Qwen3-0.6B --backend local \\
    --steps 200 --group 8
"""
STEPS, GROUP = 100, 8
_NO_DATA = "too few steps used it"
_RUN_NEEDS = "a forecast of a run needs --to-step N or --to-reward X"

_OFFERS = (
    Column(key="where"),
    Column(key="model"),
    Column(key="usd", heading="$ in all", form=".4f", right=True),
    Column(key="low90", heading="low", form=".4f", right=True, rank=1),
    Column(key="high90", heading="high (90 %)", form=".4f", right=True, rank=1),
    Column(key="assumes", wrap=True),
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "forecast", help="what a run will cost, also before its first step", epilog=_HELP
    )
    name = parser.add_argument(
        "name", metavar="WHAT", help="a run, a rollout as module:function, or a project"
    )
    completed(name, run_names)
    aim = parser.add_mutually_exclusive_group()
    aim.add_argument("--to-step", type=int, metavar="N", help="of a run: the step to train up to")
    aim.add_argument("--to-reward", type=float, metavar="X", help="of a run: the reward")
    option = parser.add_argument
    option("--scenarios", type=Path, metavar="FILE", help="of a rollout: its scenarios")
    option("--model", metavar="NAME", help="of a rollout: the base model, or openai/NAME")
    option("--steps", type=_count, metavar="N", help="before the first step: steps (100)")
    option("--group", type=_count, metavar="N", help="attempts per scenario (8)")
    option("--scenarios-per-step", type=_count, metavar="N", help="default: all in FILE")
    option("--pilots", type=_count, default=8, metavar="N", help="pilot attempts to make (8)")
    option("--timeout", type=float, metavar="S", help="seconds for one pilot attempt")
    add_backend(parser)
    add_budget(parser)
    add_directory(parser)
    parser.set_defaults(run=run_forecast)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, got {text!r}")
    return int(text)


def run_forecast(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the forecast of a run, or that of a task before its first step."""
    of_run = arguments.to_step is not None or arguments.to_reward is not None
    if arguments.scenarios is not None:
        if of_run:
            raise ConfigError(
                "--to-step and --to-reward are of a run, and --scenarios of a rollout",
                "For a rollout give --steps N.",
            )
        rollout, scenarios = imported(arguments.name), scenarios_in(arguments.scenarios)
        task = task_of(arguments, rollout, scenarios)
        per_step = arguments.scenarios_per_step or len(scenarios)
        plan = PlannedRun(
            steps=arguments.steps or STEPS, scenarios=per_step, group=arguments.group or GROUP
        )
        yield from _before(task, plan, arguments, plugins)
    elif not of_run and (Path(arguments.name) / FILE).is_file():
        task, plan = of_project(read_project(Path(arguments.name), changes(arguments)))
        yield from _before(task, plan, arguments, plugins)
    else:
        yield from _of_run(arguments, plugins)


def _of_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    if arguments.to_step is None and arguments.to_reward is None:
        known = "a rollout needs --scenarios FILE" if ":" in arguments.name else ""
        raise ConfigError(_RUN_NEEDS, known)
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    if planned := changes(arguments):
        raise ConfigError(
            f"a forecast of a run reads its log: it can't take {', '.join(planned)}",
            "Leave it out, or forecast a project or a rollout before its first step.",
        )
    usage = read_usage(run, Prices(book=PriceBook(plugins)).usd)
    step = arguments.to_step
    if step is None:
        found = reach(*_curve(usage), arguments.to_reward)
        yield Record({"reward": attrs.asdict(found)}, list(_reach_lines(found)))
        if found.verdict == "reached" or found.median is None:
            yield Record({"run": usage.run})
            return
        step = found.median
        yield from _at_the_ends(usage, found)
    yield from tables(forecast(usage, step))


def _before(
    task: PilotTask, plan: PlannedRun, arguments: argparse.Namespace, plugins: Plugins
) -> Iterator[Output]:
    """Make the pilots; yield what the plan will use, and what it costs elsewhere."""
    count = arguments.pilots
    yield f"{counted(count, 'pilot')} of {task.model}, {plan.attempts:,} attempts planned"
    with limited(arguments):
        made = asyncio.run(run_pilots(task, count))
    yield from _planned(made, task, plan, plugins)


def _planned(
    run: PilotRun, task: PilotTask, plan: PlannedRun, plugins: Plugins
) -> Iterator[Output]:
    pilots, lines = run.pilots, planned_lines(run.pilots, plan)
    values = attrs.asdict(plan) | {
        "attempts": plan.attempts,
        "pilots": pilots.made,
        "failures": pilots.failures,
        "reward": run.reward,
    }
    failed = f", {pilots.failures} failed" if pilots.failures else ""
    took = f"{pilots.wall_s:.1f} s, and {pilots.training_s:.1f} s of training"
    yield Record(values, [f"reward {run.reward:.3g}{failed}, in {took}", ""])
    yield from _line_tables(lines, "no pilot has a priced cost")
    whole = next((line.coming for line in lines if line.unit == "usd"), None)
    found = offers(task, pilots, plan, plugins, whole)
    yield ""
    rows = [
        attrs.asdict(offer, recurse=False)
        | {"usd": None if offer.usd is None else offer.usd.median}
        | ({} if offer.usd is None else attrs.asdict(offer.usd))
        for offer in found
    ]
    yield Table(name="offers", rows=rows, columns=_OFFERS)
    best = cheapest(found)
    notes = list(run.notes)
    text = ["", verdict(found), *(f"note: {note}" for note in notes)]
    yield Record({"cheapest": best and best.where, "notes": notes}, text)


def _curve(usage: Usage) -> tuple[str, Mapping[int, float]]:
    """Return the curve of evaluations, else that of training if it has more values."""
    of_val, of_train = (usage.rewards.get(key, {}) for key in REWARDS)
    use_val = len(of_val) >= min(8, len(of_train))
    return (REWARDS[0], of_val) if use_val and of_val else (REWARDS[1], of_train)


def _reach_lines(found: Reach) -> Iterator[str]:
    titles = {
        "reached": f"{found.metric} has reached {found.target:g}",
        "expected": f"{found.metric} will reach {found.target:g}",
        "not reached": f"{found.metric} will not reach {found.target:g}",
        "open": f"the data do not show whether {found.metric} will reach {found.target:g}",
    }
    yield f"{titles[found.verdict]}: {found.reason}"
    if found.verdict != "reached" and found.median is not None:
        half = f"{found.low50} to {_step(found.high50, found)}"
        most = f"{found.low90} to {_step(found.high90, found)}"
        yield f"at step {found.median}; with 50 % at step {half}, with 90 % at step {most}"


def _step(step: int | None, found: Reach) -> str:
    return f"later than {found.limit}" if step is None else str(step)


def _at_the_ends(usage: Usage, found: Reach) -> Iterator[Output]:
    """Yield the dollars up to the first and the last step at which the reward may be reached."""
    ends = [step for step in (found.low90, found.high90) if step is not None]
    later = [step for step in ends if step > usage.steps[-1]]
    lines = []
    for step in later:
        whole = forecast(usage, step).costs().get("all")
        if whole is not None and whole.total is not None:
            lines.append(f"reached at step {step} it costs {_dollars(whole.total)} in all")
    yield Record({}, lines)


def _dollars(found: Interval) -> str:
    return f"${found.median:.4g} (90 %: ${found.low90:.4g} to ${found.high90:.4g})"


def tables(found: Forecast) -> Iterator[Output]:
    """Yield a forecast: the costs, what else is used, and its notes."""
    title = f"{found.run} from step {found.step} to {found.to_step}"
    evaluations = f", {counted(found.evaluations, 'evaluation')}" if found.evaluations else ""
    values = attrs.asdict(found, filter=attrs.filters.exclude("lines", "notes"))
    yield Record(values, [f"{title}{evaluations}"])
    yield from _line_tables(found.lines, "the log has no costs")
    notes = [f"note: {note}" for note in found.notes]
    yield Record({"notes": list(found.notes)}, ["", *notes] if notes else [])


def _line_tables(lines: Sequence[Line], empty: str) -> Iterator[Output]:
    costs = sorted(
        (line for line in lines if line.unit == "usd"), key=lambda x: (x.name != "all", x.name)
    )
    columns = _columns("costs", "$", lambda value, _: f"{value:.4f}")
    yield Table(name="costs", rows=[_row(line) for line in costs], columns=columns, empty=empty)
    yield ""
    others = [_row(line) for line in lines if line.unit != "usd"]
    yield Table(name="usage", rows=others, columns=_columns("used", "", _amount))


def _row(line: Line) -> dict[str, Any]:
    """Return a line as a row: what was spent, and the whole with its interval."""
    interval = {} if line.total is None else attrs.asdict(line.total)
    names = [field.name for field in attrs.fields(Interval)]
    coming = None if line.coming is None else line.coming.median
    return (
        {"name": line.name, "unit": line.unit, "spent": line.spent, "coming": coming}
        | {name: interval.get(name) for name in names}
        | {"growth": line.growth}
    )


def _columns(title: str, unit: str, form: Any) -> Sequence[Column]:
    def single(key: str) -> Any:
        def shown(row: Mapping[str, Any]) -> str:
            return "-" if row[key] is None else form(row[key], row["unit"])

        return shown

    def between(low: str, high: str) -> Any:
        def shown(row: Mapping[str, Any]) -> str:
            if row[low] is None:
                return _NO_DATA
            return f"{form(row[low], row['unit'])} to {form(row[high], row['unit'])}"

        return shown

    def grown(row: Mapping[str, Any]) -> str:
        return "" if row["growth"] is None else f"{row['growth']:+.1%} a step"

    unit = f" {unit}" if unit else ""
    return (
        Column(key="name", heading=title),
        Column(key="", heading=f"spent{unit}", form=single("spent"), right=True, rank=1),
        Column(key="", heading=f"more{unit}", form=single("coming"), right=True, rank=2),
        Column(key="", heading=f"in all{unit}", form=single("median"), right=True),
        Column(key="", heading="with 50 %", form=between("low50", "high50"), right=True, rank=3),
        Column(key="", heading="with 90 %", form=between("low90", "high90"), right=True),
        Column(key="", heading="trend", form=grown, rank=4),
    )


def _amount(value: float, unit: str) -> str:
    if unit == "byte":
        return sized(value)
    return f"{value:.3g} h" if unit == "hour" else f"{value:,.0f}"
