"""`art eval` and `art compare`: which model or step is better, by how much, at what cost."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_budget, add_directory, limited
from art_core.cli.completion import backend_names, completed
from art_core.cli.retrain import option_values
from art_core.environments.environment import makes_environments, rollout_of
from art_core.evaluation.attempts import Rollout
from art_core.evaluation.compare import Comparison, compare, paired
from art_core.evaluation.evaluate import Evaluation, evaluate
from art_core.hooks.commands import Column, Output, Record, Table
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path
from art_core.model.backend import Backend
from art_core.model.backend import backend as make_backend
from art_core.model.model import Model
from art_core.model.trainable import TrainableModel

_EVAL_HELP = """\
TARGET is an async function of a model and a scenario that returns a Trajectory, or an environment.
FILE holds the scenarios: a JSON list, or one JSON value per line. Each attempt is kept as it ends;
the same command goes on where one that was stopped left off.

A model is a run's name (its newest weights), RUN@STEP, RUN@best (by val/reward), or openai/NAME: a
prompted model at OPENAI_BASE_URL, else at OpenAI. Runs need the backend that trained them.

examples:
  art eval my_agent:rollout --scenarios val.jsonl --models agent@best,agent@0,openai/gpt-4.1-mini
  art eval my_agent:rollout --scenarios val.jsonl --models agent --backend local --repeats 4
  art eval my_agent:rollout --scenarios val.jsonl --models openai/gpt-4.1-mini --max-usd 2
  art eval my_agent:rollout --scenarios val.jsonl --models agent --markdown
"""
_COMPARE_HELP = """\
Compares the rewards that two evaluations logged on the same scenarios, by the mean difference per
scenario. A and B are RUN@STEP. With --rollout and --scenarios the models are run instead, until
one is better: the interval holds at every look, so that stopping early is sound.

examples:
  art compare agent@12 agent@0
  art compare agent@12 other@12 --split test
  art compare agent@best openai/gpt-4.1-mini --rollout my_agent:rollout --scenarios val.jsonl
"""
_COLUMNS = (
    Column(key="model"),
    Column(key="step", right=True),
    Column(key="reward", form=".4f", right=True),
    Column(key="low", form=".4f", right=True),
    Column(key="high", form=".4f", right=True),
    Column(key="pass_at_1", heading="pass@1", form=".3f", right=True, rank=1),
    Column(key="pass_at_k", heading="pass@k", form=".3f", right=True, rank=2),
    Column(key="usd_per_attempt", heading="$/attempt", form=".6f", right=True),
    Column(key="seconds_per_attempt", heading="s/attempt", form=".2f", right=True, rank=1),
    Column(key="failures", right=True, rank=1),
)


_COMPARED = (
    Column(key="a"),
    Column(key="b"),
    Column(key="mean", heading="a - b", form="+.4f"),
    Column(key="low", form="+.4f"),
    Column(key="high", form="+.4f"),
    Column(key="pairs"),
    Column(key="planned"),
    Column(key="better"),
    Column(key="saved", form=".0%"),
)


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    parser = commands.add_parser(
        "eval", help="evaluate models on scenarios, with intervals and costs", epilog=_EVAL_HELP
    )
    parser.add_argument("target", metavar="TARGET", help="the rollout, as module:function")
    parser.add_argument("--scenarios", type=Path, metavar="FILE", required=True)
    parser.add_argument("--models", metavar="NAMES", required=True, help="separated by commas")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="attempts per scenario")
    parser.add_argument("--split", default="val", help="the rows' split (default: val)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    _add_running(parser)
    parser.set_defaults(run=run_eval)
    parser = commands.add_parser(
        "compare", help="compare two models on the same scenarios", epilog=_COMPARE_HELP
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--rollout", metavar="TARGET", help="run the models, by module:function")
    parser.add_argument("--scenarios", type=Path, metavar="FILE", help="what to run them on")
    parser.add_argument("--split", default="val", help="the split that was logged (default: val)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    _add_running(parser)
    parser.set_defaults(run=run_compare)


def _add_running(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument(
        "--max-concurrent", type=int, default=32, metavar="N", help="attempts at the same time"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds for one attempt")
    add_budget(parser)
    add_directory(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add `--backend` and `--backend-set`, for `opened_models`."""
    chosen = parser.add_argument(
        "--backend", metavar="NAME", help="what serves runs ($ART_BACKEND, else as in `art train`)"
    )
    completed(chosen, backend_names)
    parser.add_argument(
        "--backend-set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the backend; those of `art train` are known",
    )  # fmt: skip


def run_eval(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Evaluate the models one after the other, and yield their table."""
    names = [name.strip() for name in arguments.models.split(",") if name.strip()]
    rollout, scenarios = imported(arguments.target), scenarios_in(arguments.scenarios)
    with limited(arguments):
        found = asyncio.run(_evaluated(arguments, names, rollout, scenarios))
    yield from _printed(
        found,
        in_markdown=arguments.markdown and not getattr(arguments, "as_json", False),
    )


def _printed(found: Sequence[Evaluation], *, in_markdown: bool) -> Iterator[Output]:
    rows = [_row(each) for each in found]
    yield from _markdown(rows, _COLUMNS) if in_markdown else _table(rows)


async def _evaluated(
    arguments: argparse.Namespace, names: Sequence[str], rollout: Rollout, scenarios: Sequence[Any]
) -> list[Evaluation]:
    found = []
    async with opened_models(arguments) as models:
        for name in names:
            model, step = await models.get(name)
            found += await evaluate(
                model,
                scenarios,
                rollout,
                step=step,
                split=arguments.split,
                repeats=arguments.repeats,
                max_concurrent=arguments.max_concurrent,
                timeout=arguments.timeout,
                progress=name,
            )
    return found


def run_compare(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Compare two models and yield the verdict."""
    if (arguments.rollout is None) != (arguments.scenarios is None):
        raise ConfigError("to run the models, compare needs --rollout and --scenarios")
    if arguments.rollout is None:
        sides = [_logged(name, arguments) for name in (arguments.a, arguments.b)]
        yield _verdict(paired(*sides, names=(arguments.a, arguments.b)), arguments)
    else:
        with limited(arguments):
            found = asyncio.run(_compared(arguments))
        yield _verdict(found, arguments)


def _verdict(found: Comparison, arguments: argparse.Namespace) -> Record:
    values = attrs.asdict(found) | {"better": found.better, "saved": found.saved}
    if not arguments.markdown:
        return Record(values, [str(found)])
    row = {"a": found.a, "b": found.b, **attrs.asdict(found.difference)} | values
    return Record(values, list(_markdown([row], _COMPARED)))


async def _compared(arguments: argparse.Namespace) -> Comparison:
    rollout, scenarios = imported(arguments.rollout), scenarios_in(arguments.scenarios)
    async with opened_models(arguments) as models:
        (a, first), (b, second) = [await models.get(n) for n in (arguments.a, arguments.b)]
        found = await compare(
            a,
            b,
            scenarios,
            rollout,
            steps=(first, second),
            max_concurrent=arguments.max_concurrent,
            timeout=arguments.timeout,
        )
    return attrs.evolve(found, a=arguments.a, b=arguments.b)


def _logged(name: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the rewards by scenario that an evaluation logged."""
    run, _, step = name.rpartition("@")
    if not step.isdecimal() or not run:
        raise ConfigError(f"{name!r} names no evaluation", "Give RUN@STEP, such as agent@12.")
    logged = find_run(run, runs_path(arguments.dir))
    if int(step) not in logged.steps(arguments.split):
        raise ConfigError(
            f"{run} has no {arguments.split} trajectories of step {step}",
            "`art eval` makes them.",
        )
    rewards: dict[str, list[float]] = {}
    for group in logged.groups(int(step), arguments.split):
        rewards[str(group.metadata.get("scenario_id"))] = group.rewards
    return rewards


@asynccontextmanager
async def opened_models(arguments: argparse.Namespace) -> AsyncIterator[_Models]:
    """Give the models that a command names, and close them at its end."""
    async with AsyncExitStack() as stack:
        yield _Models(arguments, stack)


@attrs.define
class _Models:
    _arguments: argparse.Namespace
    _stack: AsyncExitStack
    _opened: dict[str, Model] = attrs.field(factory=dict)

    async def get(self, name: str) -> tuple[Model, int | None]:
        """Return the model of a name and the step that it asks for, None for the newest."""
        own, _, step = name.rpartition("@") if "@" in name else (name, "", "")
        model = self._opened.get(own)
        if model is None:
            model = self._prompted(own) if own.startswith("openai/") else self._trained(own)
            self._opened[own] = await self._stack.enter_async_context(model)
            if isinstance(model, TrainableModel):
                await model.register(self._backend(model.config))
        if step == "best" and isinstance(model, TrainableModel):
            return model, await model.best_checkpoint()
        if step and not step.isdecimal():
            raise ConfigError(f"{name!r} asks for step {step!r}", "Give a number, or best.")
        return model, int(step) if step else None

    def _prompted(self, name: str) -> Model:
        inference = name.removeprefix("openai/")
        return Model(
            name=inference.replace("/", "-"),
            project="evaluations",
            inference_model_name=inference,
            inference_base_url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
            inference_api_key=os.environ.get("OPENAI_API_KEY"),
            base_path=self._arguments.dir,
        )

    def _backend(self, config: Mapping[str, Any]) -> Backend:
        """Make the backend of a run, with the options that `art train` stored and those given."""
        stored = config.get("backend")
        known = stored if isinstance(stored, Mapping) else {}
        chosen = self._arguments.backend or os.environ.get("ART_BACKEND") or known.get("name")
        if not isinstance(chosen, str):
            raise ConfigError("no backend is named", "Give --backend NAME, or set ART_BACKEND.")
        options = known.get(chosen)
        options = dict(options) if isinstance(options, Mapping) else {}
        backend = make_backend(chosen, **options | option_values(self._arguments.backend_set))
        self._stack.push_async_callback(backend.close)
        return backend

    def _trained(self, name: str) -> TrainableModel:
        run = find_run(name, runs_path(self._arguments.dir))
        described = run.model()
        base_model = described["base_model"]
        if not base_model:
            raise ConfigError(f"the run {name!r} does not name its base model")
        return TrainableModel(
            name=run.path.name,
            project=run.path.parent.parent.name,
            base_model=base_model,
            config=described["config"],
            base_path=run.path.parent.parent.parent,
        )


def imported(target: str, folder: Path | None = None) -> Rollout:
    """Import a rollout, or make one of an imported environment."""
    found, _ = import_target(target, folder)
    return rollout_of(found) if makes_environments(found) else found


def import_target(target: str, folder: Path | None = None) -> tuple[Any, ModuleType]:
    """Return what is given as `module:name` or `file.py:name`, and its module, which may lie in
    `folder`, by default the current directory.
    """
    place, _, function = target.rpartition(":")
    if not place or not function:
        raise ConfigError(f"{target!r} is no function", "Give module:function.")
    here = str(Path.cwd() if folder is None else folder.resolve())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if place.endswith(".py"):
            module = _from_file(place if folder is None else str(folder / place))
        else:
            module = importlib.import_module(place)
        found = getattr(module, function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{target!r} can't be imported: {error}") from error
    return found, module


def _from_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_art_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ImportError(f"there is no file {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def scenarios_in(file: Path) -> list[Any]:
    """Read scenarios: a JSON list, or one JSON value per line."""
    data = file.read_bytes()
    with suppress(orjson.JSONDecodeError):  # then it holds one value per line
        whole = orjson.loads(data)
        return whole if isinstance(whole, list) else [whole]
    values = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            values += [orjson.loads(line)] if line.strip() else []
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{file}: line {number} is no JSON: {error}") from error
    return values


def _row(each: Evaluation) -> dict[str, Any]:
    most = max(each.pass_at)
    return {
        "model": each.model,
        "step": each.step,
        "reward": each.reward.mean,
        "std_err": each.reward.std_err,
        "low": each.reward.low,
        "high": each.reward.high,
        "pass_at_1": each.pass_at[1],
        "pass_at_k": each.pass_at[most],
        "k": most,
        "usd_per_attempt": each.usd,
        "seconds_per_attempt": each.seconds,
        "attempts": each.reward.count + each.failures,
        "failures": each.failures,
        "unpriced": each.unpriced,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[Output]:
    yield Table(name="evaluations", rows=rows, columns=_COLUMNS)


def _markdown(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Iterator[str]:
    yield "| " + " | ".join(column.title for column in columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        cells = (format(row[column.key], str(column.form)) for column in columns)
        yield "| " + " | ".join(cells) + " |"
