"""`art checkpoints`: list, best, prune, fork, merge, diff. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from art_core import Column, CommandSpec, LoggedRun, Plugins, Record, Table, open_run
from art_core.base.errors import ConfigError
from art_core.base.files import read_json, take_lock

if TYPE_CHECKING:
    from art_local.checkpoints.fork import Source

METRIC = "val/reward"
HELP = """\
`prune` keeps what a model keeps by default, or by the given numbers; the newest checkpoint and the
reference of its KL penalty always stay. `fork` makes a new run that begins with a checkpoint of
RUN; the parent's costs are recorded and not counted again. `merge` makes a new run whose checkpoint
is the average of several: for LoRA the average of the changes B @ A of the base model, in the first
one's rank; for all weights the average of the weights. Its optimizer starts afresh. `diff` shows
how far each layer moved between two steps (Frobenius norms).

examples:
  art checkpoints list agent-001
  art checkpoints prune agent-001 --recent 3 --top 2 --metric val/reward --yes
  art checkpoints fork agent-001 agent-002 --step 12
  art checkpoints merge agent-001@10 agent-001@20 --name agent-soup
  art checkpoints diff agent-001@10 agent-001@20
"""
SET_ASIDE = re.compile(r"\d+\.(abandoned|corrupted)(-\d+)?")
LAYER = re.compile(r"(.*?\.\d+)\.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=text, description=text)
        added.add_argument("--dir", metavar="PATH", help="the directory of the runs (.art)")
        added.set_defaults(run=run)
        return added

    listed = action("list", list_checkpoints, "list a run's checkpoints")
    listed.add_argument(
        "--verify", action="store_true", help="read all files, compare their hashes"
    )
    best = action("best", best_checkpoint, "print the best checkpoint by a metric")
    pruned = action("prune", prune, "delete checkpoints")
    for each in (listed, best, pruned):
        each.add_argument("name", metavar="RUN", help="a run's name, project/name or directory")
        each.add_argument("--metric", default=METRIC, metavar="KEY", help="(%(default)s)")
    pruned.add_argument("--recent", type=_count, default=3, metavar="N", help="(%(default)s)")
    pruned.add_argument("--top", type=_count, default=2, metavar="N", help="(%(default)s)")
    pruned.add_argument("--every", type=_count, metavar="N", help="keep each N-th step instead")
    pruned.add_argument(
        "--set-aside", action="store_true", help="also delete abandoned and corrupted ones"
    )
    pruned.add_argument("--dry-run", action="store_true", help="only print what would be deleted")
    pruned.add_argument("--yes", action="store_true", help="do not ask")
    forked = action("fork", fork_run, "make a new run that begins with a checkpoint of a run")
    forked.add_argument("name", metavar="RUN", help="the parent, or RUN@STEP")
    forked.add_argument("new", metavar="NAME", help="of the new run, in the parent's project")
    forked.add_argument("--step", type=_count, metavar="N", help="of the parent (its newest)")
    merged = action("merge", merge_runs, "make a new run with the average of checkpoints")
    merged.add_argument("names", metavar="RUN@STEP", nargs="+", help="two or more checkpoints")
    merged.add_argument("--name", dest="new", required=True, metavar="NAME", help="of the new run")
    merged.add_argument("--weights", metavar="A,B", help="of the checkpoints (equal)")
    merged.add_argument("--rank", type=_count, metavar="N", help="of the average (the first one's)")
    compared = action("diff", diff, "show how far each layer moved between two checkpoints")
    compared.add_argument("names", metavar="RUN@STEP", nargs=2, help="two checkpoints")
    compared.add_argument("--modules", action="store_true", help="show each module of a layer")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def list_checkpoints(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record | Table]:
    """Yield the checkpoints, and the parents of a fork."""
    run = open_run(arguments.name, arguments.dir)
    values, ranked = _ranked(run, arguments.metric)
    rows = [
        {
            "step": step,
            "bytes": _size(path),
            "created_at": _manifest(path).get("created_at"),
            "value": values.get(step),
            "note": _note(run, step, ranked, path, verify=arguments.verify),
            "path": path,
        }
        for step, path in run.checkpoints().items()
    ]
    rows += [
        {"step": None, "bytes": _size(path), "created_at": None, "value": None,
         "note": path.name, "path": path}
        for path in _set_aside(run)
    ]  # fmt: skip
    yield Record({"run": run.name, "parents": run.parents()}, _parent_lines(run))
    columns = [
        Column(key="step", right=True),
        Column(key="bytes", heading="MB", form=lambda size: f"{size / 1e6:,.1f}", right=True),
        Column(key="value", heading=arguments.metric, form=".4g", right=True),
        Column(key="created_at", heading="written", form=lambda text: f"{text:.19}", rank=1),
        Column(key="note"),
    ]
    yield Table(name="checkpoints", rows=rows, columns=columns, empty="no checkpoints")


def best_checkpoint(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record]:
    """Yield the best checkpoint's step and directory."""
    run = open_run(arguments.name, arguments.dir)
    values, ranked = _ranked(run, arguments.metric)
    if not ranked:
        raise ConfigError(
            f"no checkpoint of {run.name} has a value of {arguments.metric!r}",
            "Evaluate one first.",
        )
    step = ranked[0]
    found = {"run": run.name, "step": step, "value": values[step], "path": run.checkpoints()[step]}
    yield Record(found, [f"step {step}  {arguments.metric} {values[step]:.4g}  {found['path']}"])


def prune(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record]:
    """Delete the checkpoints that are not kept; yield their steps."""
    run = open_run(arguments.name, arguments.dir)
    with _held(run):
        stored = run.checkpoints()
        kept = _kept(run, arguments)
        doomed = {step: path for step, path in stored.items() if step not in kept}
        aside = _set_aside(run) if arguments.set_aside else []
        freed = sum(map(_size, [*doomed.values(), *aside]))
        names = [f"step {step}" for step in doomed] + [path.name for path in aside]
        text = f"{', '.join(names) or 'nothing'} of {run.name} ({freed / 1e6:,.1f} MB)"
        asked = names and not arguments.dry_run and not arguments.yes
        if arguments.dry_run or not names or (asked and not _confirmed(f"delete {text}?")):
            told = f"would delete {text}" if names and arguments.dry_run else "nothing was deleted"
            yield Record({"deleted": [], "kept": sorted(kept)}, [told])
            return
        for path in [*doomed.values(), *aside]:
            # renamed first, so that a kill leaves no half checkpoint under its name
            gone = path.with_name(f".tmp-deleted-{path.name}-{os.getpid()}")
            path.rename(gone)
            shutil.rmtree(gone)
        values = {"deleted": [*doomed], "kept": sorted(kept), "bytes": freed}
        yield Record(values, [f"deleted {text}"])


def _kept(run: LoggedRun, arguments: argparse.Namespace) -> set[int]:
    steps = list(run.checkpoints())
    if not steps:
        return set()
    if arguments.every is None:
        ranked = _ranked(run, arguments.metric)[1]
        kept = {*steps[len(steps) - arguments.recent :], *ranked[: arguments.top]}
    else:
        kept = {step for step in steps if step % max(arguments.every, 1) == 0}
    reference = int(_manifest(run.checkpoints()[steps[-1]]).get("reference_step") or 0)
    return {*kept, steps[-1], reference}.intersection(steps)


def fork_run(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record]:
    """Make a fork and yield where it is."""
    from art_local.checkpoints.fork import Source, fork

    source = Source.of(arguments.name, arguments.dir, arguments.step)
    path = fork(source, arguments.new)
    yield _made(path, [source], f"{path.name} begins with {source.name}")


def merge_runs(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record]:
    """Make a run with the average of checkpoints and yield where it is."""
    from art_local.checkpoints.arithmetic import merge
    from art_local.checkpoints.fork import Source, new_run
    from art_local.session.checkpoints import CheckpointStore

    sources = [Source.of(name, arguments.dir) for name in arguments.names]
    weights = _weights(arguments.weights, len(sources))
    step = max(source.stored.step for source in sources)
    lost = 0.0

    def fill(aside: Path) -> None:
        nonlocal lost
        about: dict[str, Any] = {}

        def files(directory: Path) -> None:
            nonlocal lost
            found, lost = merge(sources, weights, directory, arguments.rank)
            about.update(found)

        CheckpointStore(aside / "checkpoints").write(step, files, about)

    path = new_run(sources, arguments.new, fill, {"kind": "merge", "weights": weights})
    rest = f"; its rank leaves out {lost:.2%} of the average's norm" if lost > 1e-6 else ""
    names = ", ".join(source.name for source in sources)
    yield _made(
        path, sources, f"{path.name} begins at step {step} with the average of {names}{rest}"
    )


def _weights(text: str | None, count: int) -> list[float]:
    if count < 2:
        raise ConfigError("an average needs two checkpoints", "Give RUN@STEP twice or more.")
    try:
        given = [1.0] * count if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        given = []
    if len(given) != count or not sum(given) or not all(map(math.isfinite, given)):
        raise ConfigError(
            f"--weights {text} are not {count} numbers with a sum", "Give them as 0.7,0.3."
        )
    return [weight / sum(given) for weight in given]


def _made(path: Path, sources: Sequence[Source], text: str) -> Record:
    values = {"path": path, "parents": [source.described() for source in sources]}
    return Record(values, [f"{text}: {path}", *_parent_lines(LoggedRun(path))])


def diff(arguments: argparse.Namespace, _: Plugins) -> Iterator[Record | Table]:
    """Yield the norms of the change of each layer, and of all."""
    from art_local.checkpoints.arithmetic import changes
    from art_local.checkpoints.fork import Source

    first, second = (Source.of(name, arguments.dir) for name in arguments.names)
    modules = changes(first, second)
    layers: dict[str, list[tuple[float, float]]] = {}
    for name, change, norm in modules:
        layer = LAYER.match(name)
        key = layer[1] if layer and not arguments.modules else name
        layers.setdefault(key, []).append((change, norm))
    everything = [(change, norm) for _, change, norm in modules]
    of = "weights" if first.stored.manifest["full_finetune"] else "adapter"
    yield Table(
        name="layers",
        rows=[_row(name, norms) for name, norms in layers.items()],
        columns=[
            Column(key="layer"),
            Column(key="change", form=".4g", right=True),
            Column(key="norm", heading=f"{of} of {first.name}", form=".4g", right=True),
            Column(key="share", heading="change / norm", form=".2%", right=True),
        ],
    )
    total = _row("all", everything)
    del total["layer"]
    yield Record(
        {"from": first.name, "to": second.name, **total},
        [
            "",
            f"all layers: {total['change']:.6g}, the {of} of {first.name} has {total['norm']:.6g}",
        ],
    )


def _row(name: str, norms: Sequence[tuple[float, float]]) -> dict[str, Any]:
    change, norm = (
        math.sqrt(sum(value * value for value in each)) for each in zip(*norms, strict=True)
    )
    return {"layer": name, "change": change, "norm": norm, "share": change / norm if norm else None}


def _ranked(run: LoggedRun, metric: str) -> tuple[dict[int, float], list[int]]:
    """Return a metric's values and the steps with a checkpoint, the best first."""
    curve = run.curve(metric) if metric in run.timeline().curves() else {}
    values = {step: curve[step] for step in run.checkpoints() if step in curve}
    sign = 1.0 if run.taxonomy.direction(run.taxonomy.resolve(metric)) == "lower" else -1.0
    return values, sorted(values, key=lambda step: (sign * values[step], -step))


def _note(run: LoggedRun, step: int, ranked: list[int], path: Path, *, verify: bool) -> str:
    notes = ["newest"] if step == max(run.checkpoints()) else []
    notes += ["best"] if ranked[:1] == [step] else []
    if verify:
        from art_local.session.checkpoints import CheckpointStore, DamagedError

        try:
            CheckpointStore(path.parent).read(step)
            notes.append("verified")
        except DamagedError as error:
            notes.append(str(error))
    return ", ".join(notes)


def _parent_lines(run: LoggedRun) -> list[str]:
    return [
        f"from {parent['run']} at step {parent['step']}, which had cost "
        f"${parent['costs'].get('all', 0.0):,.4f} (not counted here)"
        for parent in run.parents()
    ]


def _set_aside(run: LoggedRun) -> list[Path]:
    folder = run.path / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if SET_ASIDE.fullmatch(path.name))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / "manifest.json")
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def _held(run: LoggedRun) -> Iterator[None]:
    """Lock a run's log; ConfigError if a process has the run."""
    fd = os.open(run.history, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not take_lock(fd):
            raise ConfigError(
                f"{run.name} is in use", "Stop its trainer; a trainer prunes by keep_checkpoints."
            )
        yield
    finally:
        os.close(fd)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("deleting needs a confirmation", "Give --yes where no terminal can ask.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


COMMAND = CommandSpec(
    name="checkpoints",
    summary="list, prune, fork, merge and compare checkpoints of runs trained with local",
    create=add_arguments,
    run=list_checkpoints,
    help=HELP,
)
