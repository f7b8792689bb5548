"""The public reader of a run's directory, and the search for runs.

Each call reads the files as they are then, so that a reader follows a run that still logs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.base.files import read_json
from art_core.data.store import (
    EARLIER,
    read_art_groups,
    read_groups,
    trajectory_file,
    trajectory_folder,
)
from art_core.data.trajectory import TrajectoryGroup
from art_core.log.history import MetricsRow, last_row
from art_core.log.rows import is_paid, offset_after, read_rows
from art_core.log.rundir import RunState, checkpoint_folder, history_file, read_model, read_state
from art_core.log.timeline import Timeline
from art_core.metrics.receipt import Receipt, receipt_of
from art_core.metrics.taxonomy import Taxonomy, builtin_taxonomy

log = logging.getLogger("art_core")

FIELDS = ("seq", "attempt", "step", "split", "recorded_at")
"""The columns of a table of rows beside the metrics."""


@attrs.frozen
class Costs:
    """What a run cost in US dollars, by path below `costs/`: `all` is the sum.

    `total` is the whole run with all attempts; `steps` has the costs of each step that cost
    something, on every split.
    """

    total: dict[str, float]
    steps: dict[int, dict[str, float]]

    @classmethod
    def of_line(cls, line: Timeline) -> Costs:
        """Return the costs of a line that keeps them."""
        paid = "costs/cum/"
        total = {k.removeprefix(paid): v for k, v in line.totals.items() if k.startswith(paid)}
        steps: dict[int, dict[str, float]] = {}
        for key in filter(is_paid, line.kept_keys()):
            for step, usd in line.curve(key).items():
                steps.setdefault(step, {})[key.removeprefix("costs/")] = usd
        return cls(total, dict(sorted(steps.items())))


@attrs.frozen
class LoggedRun:
    """A run's directory, to read: its rows, trajectories, checkpoints, costs and status.

    Nothing is read before it is requested, and nothing is written, so that another process may log
    to the run. Metrics have the names of today's catalogue.
    """

    path: Path = attrs.field(converter=Path)
    taxonomy: Taxonomy = attrs.field(factory=builtin_taxonomy, repr=False, eq=False)

    @property
    def name(self) -> str:
        """`<project>/<model>`, after the directories; bytes that are not UTF-8 are escaped."""
        name = f"{self.path.parent.parent.name}/{self.path.name}"
        return os.fsencode(name).decode(errors="backslashreplace")

    @property
    def history(self) -> Path:
        """The file of the rows."""
        return history_file(self.path)

    def status(self) -> str:
        """Return the run's status, "running" or how it ended; `state` has the reason, too."""
        return self.state().status

    def state(self) -> RunState:
        """Return the run's status, with the reason why it ended or can't be read.

        A run recorded as "running" whose log no process has open is "killed".
        """
        return read_state(self.path)

    def model(self) -> dict[str, Any]:
        """Return the project, name, base model and config that the run was made with.

        An archived directory is described by the names in it, not by where it lies.
        """
        names = {"project": self.path.parent.parent.name, "name": self.path.name}
        return names | {"base_model": None, "config": {}} | read_model(self.path)

    def parents(self) -> list[dict[str, Any]]:
        """Return the runs that this one was forked or merged from: `run`, `path`, `step`, and the
        `costs` up to that step, which are not in this run's.
        """
        return list(read_json(self.path / "parent.json").get("parents", []))

    def last_row(self) -> MetricsRow | None:
        """Return the newest whole row; None if there is none."""
        row = last_row(self.history)
        return None if row is None else self._renamed(row)

    def rows(
        self,
        after: int = 0,
        *,
        split: str | None = None,
        attempt: int | None = None,
        current: bool = False,
    ) -> Iterator[MetricsRow]:
        """Yield the rows after the one with the seq `after`, of a split or an attempt.

        With `current`, rows are left out that a later attempt replaced, since it trained again from
        an older step. A torn last line, as a live run may have, is left for the next call. Rows
        that ART wrote have no seq; they count from 1.
        """
        limits = self._limits() if current else None
        offset = offset_after(self.history, after) if after > 0 and not current else 0
        for number, (row, _) in enumerate(read_rows(self.history, offset), start=1):
            if limits is not None and not limits(number, row.step):
                continue
            seq = row.seq if row.seq and isinstance(row.seq, int) else number
            if seq > after and split in (None, row.split) and attempt in (None, row.attempt):
                yield self._renamed(row)

    def _renamed(self, row: MetricsRow) -> MetricsRow:
        metrics = self.taxonomy.renamed(row.metrics, foreign=not row.seq)
        return attrs.evolve(row, metrics=metrics)

    def _limits(self) -> Callable[[int, int], bool]:
        """Return a function that returns whether the row of a number and step is current."""
        line = self.timeline(lambda _: False)
        limits = line.row_limits()

        def is_current(number: int, step: int) -> bool:
            return number <= line.rows and step < limits[number - 1]

        return is_current

    def timeline(self, keeps: Callable[[str], bool] | None = None) -> Timeline:
        """Return the current line: {step: value} of each metric, or of those `keeps` accepts."""
        return Timeline.of_log(self.history, self.taxonomy, keeps)

    def curve(self, metric: str) -> dict[int, float]:
        """Return {step: value} of a metric on the current line, under any name it has had.

        Raises ConfigError for a metric that was never logged.
        """
        key = self.taxonomy.resolve(metric)
        average = self.taxonomy.former_average(metric)
        line = self.timeline(lambda name: name in (key, average))
        if line.logged.isdisjoint((key, average)):
            raise ConfigError(
                unknown("metric", metric, line.logged, known_as=f"{self.name} has"),
                "The names of metrics are in docs/metrics.md.",
            )
        return line.curve(average) | line.curve(key)

    def costs(self) -> Costs:
        """Return what the run cost in US dollars, as a whole and by step, with all attempts."""
        return Costs.of_line(self.timeline(lambda key: key.startswith("costs/")))

    def receipts(self) -> Iterator[tuple[MetricsRow, Receipt]]:
        """Yield what was bought, each receipt with its row."""
        for row in self.rows():
            for receipt in receipts_of(row):
                yield row, receipt

    def splits(self) -> list[str]:
        """Return the splits of which trajectories are stored."""
        return [path.name for path in _listed(trajectory_folder(self.path)) if path.is_dir()]

    def steps(self, split: str = "train") -> list[int]:
        """Return the steps of which trajectories of a split are stored, in order."""
        files = _listed(trajectory_folder(self.path, split))
        return sorted(
            {int(path.stem) for path in files if path.is_file() and path.stem.isdecimal()}
        )

    def groups(
        self, step: int, split: str = "train", *, earlier: bool = False
    ) -> list[TrajectoryGroup]:
        """Return the groups of trajectories of a step, also of a run that ART wrote.

        With `earlier`, these are the groups that were stored for the step and not trained in it.
        Raises ConfigError for a step without trajectories, and if the library for ART's Parquet
        files is missing.
        """
        file = trajectory_file(self.path, split, step)
        file = file.parent / EARLIER / file.name if earlier else file
        file = file if file.is_file() else file.with_suffix(".parquet")
        if not file.is_file():
            known = ", ".join(map(str, self.steps(split))) or "none"
            raise ConfigError(
                f"{self.name} has no trajectories of step {step} of {split!r}; stored: {known}"
            )
        try:
            is_art = file.suffix == ".parquet"
            return read_art_groups(file) if is_art else list(read_groups(file))
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{file} holds no groups of trajectories: {error!r}") from error

    def checkpoints(self) -> dict[int, Path]:
        """Return {step: directory} of the checkpoints in the run's directory, by step.

        Backends that train elsewhere keep theirs there; `model.checkpoints()` asks them.
        """
        found = _listed(checkpoint_folder(self.path))
        steps = {int(path.name): path for path in found if path.is_dir() and path.name.isdecimal()}
        return dict(sorted(steps.items()))

    def to_pandas(self, **which: Any) -> Any:
        """Return rows as a pandas DataFrame, one column per metric; takes the options of `rows`.

        Raises ConfigError if pandas is not installed.
        """
        return _library("pandas").DataFrame(self._columns(which))

    def to_polars(self, **which: Any) -> Any:
        """Return rows as a polars DataFrame, one column per metric; takes the options of `rows`.

        Raises ConfigError if polars is not installed.
        """
        # Not strict: a row of another program may have an odd type.
        return _library("polars").DataFrame(self._columns(which), strict=False)

    def _columns(self, which: Mapping[str, Any]) -> dict[str, list[Any]]:
        rows = list(self.rows(**which))
        keys = dict.fromkeys(key for row in rows for key in row.metrics)
        fields = {name: [getattr(row, name) for row in rows] for name in FIELDS}
        return fields | {key: [row.metrics.get(key) for row in rows] for key in keys}


def receipts_of(row: MetricsRow) -> Iterator[Receipt]:
    """Yield a row's receipts, without those that can't be read, such as a later release's."""
    for stored in row.receipts:
        with suppress(TypeError, AttributeError):
            yield receipt_of(stored)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this table needs {name}, which is not installed", f"pip install 'art-core[{name}]'"
        ) from error


def find_runs(base_path: Path, taxonomy: Taxonomy | None = None) -> Iterator[LoggedRun]:
    """Yield the runs below a directory, by project and name, readable or not.

    A directory that can't be listed is passed over with a warning.
    """
    taxonomy = taxonomy or builtin_taxonomy()
    for project in _listed(base_path):
        for path in _listed(project / "models"):
            if _is_run(path):
                yield LoggedRun(path, taxonomy)


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("the runs in %s can't be listed: %s", directory, error.strerror)
        return []


def _is_run(path: Path) -> bool:
    """Return whether a directory holds a log, or hides whether it does."""
    try:
        history_file(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink() and not path.exists()
    except OSError:
        return True
    return True


def find_run(requested: str | Path, base_path: Path, taxonomy: Taxonomy | None = None) -> LoggedRun:
    """Return a run by directory, `project/name`, or a name that only one run has; ConfigError names
    the runs.
    """
    taxonomy = taxonomy or builtin_taxonomy()
    # A name of thousands of characters is no path, and asking the system for it raises.
    with suppress(OSError, ValueError):
        history_file(Path(requested)).lstat()
        return LoggedRun(Path(requested).resolve(), taxonomy)
    requested = str(requested)
    runs = {run.name: run for run in find_runs(base_path, taxonomy)}
    fits = [
        run
        for name, run in runs.items()
        if requested in (name, run.path.name, f"{run.path.parent.parent.name}/{run.path.name}")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ConfigError(
            f"{len(fits)} runs are named {requested!r}: {', '.join(r.name for r in fits)}",
            "Choose one.",
        )
    remedy = "" if runs else "--dir or ART_DIR is the directory of the runs."
    raise ConfigError(unknown("run", requested, runs, known_as=f"in {base_path}"), remedy)
