"""Models take rollouts and write rows. `TrainableModel` adds weights and their backend."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack
from weakref import WeakKeyDictionary

import attrs

from art_core.backends import Endpoint
from art_core.base.errors import ConfigError, HistoryError, settings_without_secrets
from art_core.base.files import checked_name, read_json, replace_json
from art_core.base.numbers import checked_step
from art_core.budgets.budget import Budget
from art_core.budgets.run_budget import RunBudget
from art_core.client.meter import ModelMeter
from art_core.client.openai_client import openai_client
from art_core.client.recorder import Recorder, Recording
from art_core.costs.builder import MetricsBuilder, PriceBook, active_builder
from art_core.costs.ledger import Ledger
from art_core.costs.pending import offer_default, settle, settle_rest, withdraw_default
from art_core.data.account import UNOWNED, handed_over
from art_core.data.store import append_groups, trajectory_file
from art_core.data.trajectory import Trajectory, TrajectoryGroup
from art_core.hooks.host import Plugins, installed_plugins
from art_core.log.history import MetricsRow
from art_core.log.rundir import run_directory, runs_path
from art_core.metrics.summarize import summarize
from art_core.model.scenarios import check_scenarios
from art_core.run.exits import status_of
from art_core.run.run import CLOSE_SECONDS, Run
from art_core.sinks.delivery import DeliveryReport
from art_core.sinks.protocol import RunInfo, SinkSpec, distinct_sinks

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from art_core.gateway.gateway import Gateway, GatewayOptions

log = logging.getLogger("art_core")


@attrs.define(kw_only=True, eq=False)
class Model:
    """A model under a name in a project, whose rollouts are logged; not trained here.

    Rows go to `<base_path>/<project>/models/<name>/history.jsonl` and on to `sinks`: names or
    SinkSpecs, by default those of `ART_SINKS`, else every installed one; an empty list for none.
    A `budget` limits what the run spends (see `art.budget`).
    """

    _trainable: ClassVar[bool] = False

    name: str
    project: str
    inference_model_name: str | None = None
    inference_base_url: str | None = None
    inference_api_key: str | None = attrs.field(default=None, repr=False)
    config: dict[str, Any] = attrs.field(factory=dict)
    base_path: str | Path | None = None
    sinks: Sequence[str | SinkSpec] | None = None
    budget: Budget | None = None
    plugins: Plugins = attrs.field(factory=installed_plugins, repr=False)
    _ledger: Ledger = attrs.field(init=False, repr=False)
    _prices: PriceBook = attrs.field(init=False, repr=False)
    _default_builder: MetricsBuilder = attrs.field(init=False, repr=False)
    _run: Run | None = attrs.field(default=None, init=False, repr=False)
    _lock: threading.RLock = attrs.field(factory=threading.RLock, init=False, repr=False)
    _sink_specs: list[SinkSpec] = attrs.field(init=False, repr=False)
    _stored: dict[str, tuple[int, ...]] = attrs.field(factory=dict, init=False, repr=False)
    _clients: WeakKeyDictionary[Any, AsyncOpenAI] = attrs.field(
        factory=WeakKeyDictionary, init=False, repr=False
    )
    _recorder: Recorder | None = attrs.field(default=None, init=False, repr=False)
    _owner: str = attrs.field(init=False, repr=False)
    _runs: Path = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._owner = f"{type(self).__name__} made at {_place_of_caller()}"
        # absolute: the program may change its directory while the run is open
        self._runs = runs_path(self.base_path).absolute()
        checked_name("project", self.project)
        checked_name("model", self.name)
        self._ledger = Ledger(self.plugins.taxonomy())
        if self.budget is not None:
            trains = self._trainable
            self._ledger.budget = RunBudget.of(self.budget, self.run_dir, trains=trains)
        self._prices = PriceBook(self.plugins)
        self._sink_specs = self._chosen_sinks()
        self._default_builder = MetricsBuilder(self._ledger, self._prices)
        offer_default(self._default_builder)

    def _chosen_sinks(self) -> list[SinkSpec]:
        chosen: Sequence[str | SinkSpec] | None = self.sinks
        if chosen is None and "ART_SINKS" in os.environ:
            names = (name.strip() for name in os.environ["ART_SINKS"].split(","))
            chosen = list(dict.fromkeys(name for name in names if name))
        if chosen is None:
            return [spec for spec in self.plugins.sinks().values() if spec.default]
        return distinct_sinks(
            item if isinstance(item, SinkSpec) else self.plugins.sink(item) for item in chosen
        )

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return run_directory(self._runs, self.project, self.name)

    @property
    def run(self) -> Run:
        """The open run; opened on first use. HistoryError when a newer model object has it."""
        with self._lock:
            if self._run is not None and self._run.heir is not None:
                raise HistoryError(
                    f"the run {self._run.name} belongs to a newer model object, the "
                    f"{self._run.current().owner}",
                    f"Use that one: this {self._owner} lost the run when it was opened.",
                )
            if self._run is None:
                info = RunInfo(
                    project=self.project,
                    name=self.name,
                    run_dir=self.run_dir,
                    base_model=self._weights_name(),
                    config=settings_without_secrets(self.config),
                    taxonomy=self._ledger.taxonomy,
                )
                self._run = Run.open(
                    info, self._sink_specs, self.plugins, self._ledger, self._prices, self._owner
                )
            return self._run

    def _weights_name(self) -> str | None:
        """Return the name of the weights that the run records."""
        return self.inference_model_name

    async def get_step(self) -> int:
        """Return the training step that the model is at."""
        return self.run.last_step

    def endpoint(self) -> Endpoint:
        """Return the endpoint that serves the model; ConfigError if it is not known."""
        if not (self.inference_base_url and self.inference_model_name):
            raise ConfigError(
                f"model {self.name!r} has no endpoint",
                "Give inference_base_url and inference_model_name.",
            )
        return Endpoint(
            base_url=self.inference_base_url,
            api_key=self.inference_api_key or "none",
            model_name=self.inference_model_name,
        )

    def get_inference_name(self, step: int | None = None) -> str:
        """Return the model name to put into requests: the newest weights, or those of a step."""
        return self.endpoint().inference_name(step)

    def openai_client(self) -> AsyncOpenAI:
        """Return an OpenAI client of the endpoint, one for each event loop; call it inside one."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = openai_client(
                self.endpoint(), trainable=self._trainable, meter=self._meter()
            )
        return self._clients[loop]

    def _meter(self) -> ModelMeter | None:
        """Return the counter of the model's own tokens; None for a trained model, whose backend
        reports its use.
        """
        if self._trainable:
            return None
        served = self.endpoint()
        return ModelMeter(served.base_url, served.model_name, self.metrics_builder("eval"))

    @contextmanager
    def recording(
        self, trajectory: Trajectory, *, unconstrained: bool = False
    ) -> Iterator[Endpoint]:
        """Give an endpoint for an agent that brings its own client: while the block lasts, requests
        and answers there are added to the trajectory, with token ids if the model is trained.

        A request that does not continue a conversation of the trajectory begins one of its
        `additional_histories`. With `unconstrained`, fields that force the form of an answer are
        removed from requests: `response_format`, `parallel_tool_calls`, and `tool_choice` unless it
        is "none". ConfigError if the endpoint is not known.
        """
        with self._lock:
            if self._recorder is None:
                self._recorder = Recorder(
                    self.endpoint(), trainable=self._trainable, meter=self._meter()
                ).start()
        builder = active_builder.get()
        recording = Recording(
            trajectory=trajectory,
            context=builder.context if builder else "",
            unconstrained=unconstrained,
        )
        with self._recorder.recorded(recording) as endpoint:
            yield endpoint

    def gateway(self, **options: Unpack[GatewayOptions]) -> Gateway:
        """Return a server for agents in other processes, containers and languages: each attempt
        there has a key of its own, and its calls are recorded. Use it with `async with`.

        Options: `host`, `port`, `api_key`, `attempt_timeout_s`, `max_attempts`, `unconstrained`,
        `queue` (from which workers lease attempts), `allow_remote`, `ssl_certfile`, `ssl_keyfile`.
        ConfigError for options that do not fit, and if the endpoint is not known.
        """
        from art_core.gateway.gateway import Gateway

        builder = active_builder.get()

        def check_metrics(measured: Trajectory) -> None:
            summarize([TrajectoryGroup([measured])], "train", self._ledger.taxonomy)

        return Gateway(
            self.endpoint(),
            trainable=self._trainable,
            check_metrics=check_metrics,
            meter=self._meter(),
            context=builder.context if builder else "",
            **options,
        )

    async def _close_clients(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        recorder, self._recorder = self._recorder, None
        if client is not None:
            await client.close()
        if recorder is not None:
            await asyncio.to_thread(recorder.stop)

    def metrics_builder(self, context: str | None = None) -> MetricsBuilder:
        """Return the builder of the next row's metrics. Costs belong to the context, "train" or
        "eval".
        """
        return MetricsBuilder(self._ledger, self._prices, context or "")

    async def log(
        self,
        trajectories: Iterable[Trajectory] | Iterable[TrajectoryGroup] | None = None,
        split: str = "val",
        *,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> MetricsRow:
        """Store trajectories and append one row of metrics on a split, at a step (default: the
        current one).

        Raises ConfigError for a bad split or step and MetricError for bad keys or values, with
        nothing written; HistoryError if the disk does not take the data.
        """
        checked_name("split", split)
        groups = ready_groups(trajectories or ())
        at = checked_step(await self.get_step() if step is None else step)
        if groups:
            self.run.check(split, groups, metrics)
            self._store(split, at, groups)
        self._settle(split, groups)
        return self.run.record(split, at, groups=groups, metrics=metrics)

    def _settle(self, split: str, groups: Sequence[TrajectoryGroup]) -> None:
        """Book the paid calls of the rollouts, before their row is written."""
        paid = any(group.accounts() for group in groups)
        if paid or UNOWNED.calls or handed_over:
            settle(groups, self.metrics_builder("train" if split == "train" else "eval"))

    def _store(self, split: str, step: int, groups: Sequence[TrajectoryGroup]) -> int:
        """Store groups, unless a failed call has stored them before; return the byte of the file at
        which they begin.
        """
        which = (step, *(group.id for group in groups))
        again = self._stored.get(split) == which
        self._stored[split] = which
        file = trajectory_file(self.run.info.run_dir, split, step)
        return append_groups(file, groups, again=again)

    def read_state(self) -> dict[str, Any]:
        """Return the values that `merge_state` stored, for example a position in a dataset."""
        return read_json(self.run_dir / "state.json")

    def merge_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Merge JSON values into the run's `state.json`, replaced whole; return the result."""
        file = self.run.info.run_dir / "state.json"
        with self._lock:
            merged = read_json(file) | dict(state)
            replace_json(file, merged)
        return merged

    def check_scenarios(self, scenarios: Iterable[Any], *, accept_changes: bool = False) -> None:
        """Record the scenarios of the run; in a process that resumes it, compare them with those.

        Call it before the loop, with all scenarios in the order in which steps take them. Raises
        ConfigError if they were changed since the run's last step: the step is the position in the
        data, so it would go on elsewhere. `accept_changes` logs the difference and records the new
        ones.
        """
        run = self.run
        check_scenarios(
            run.info.run_dir, run.name, run.last_step, scenarios, accept_changes=accept_changes
        )

    async def close(
        self,
        timeout: float = CLOSE_SECONDS,
        *,
        status: str | None = None,
        error: BaseException | None = None,
    ) -> Mapping[str, DeliveryReport]:
        """Write a row of waiting metrics and drain the sinks within `timeout` seconds; report each.
        The run and its sinks get the type and message of an `error`, without secrets.

        In a `finally` or `except` block the error is the exception that is being handled. It gives
        the `status`: "finished" without one, "interrupted" for Ctrl-C, "out of budget" for a
        BudgetError, else "failed".
        """
        error = error or _error_of_caller()
        status = status or status_of(error)
        settle_rest(self._default_builder)
        withdraw_default(self._default_builder)
        await self._close_clients()
        if self._run is None and not self._ledger.waiting:
            return {}
        if self._run is not None and self._run.heir is not None:
            return {}  # a newer object closes the run
        return await asyncio.to_thread(self.run.close, status, timeout, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(status=status_of(error), error=error)


def _place_of_caller() -> str:
    """Return the file and line of the code that made the model."""
    frame = _calling_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _error_of_caller() -> BaseException | None:
    """Return the exception that the calling code itself handles, not code around it."""
    error = sys.exc_info()[1]
    trace = error.__traceback__ if error else None
    return error if trace is not None and trace.tb_frame is _calling_frame() else None


def _calling_frame() -> FrameType:
    """Return the nearest frame outside of the core."""
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.startswith("art_core.") or frame.f_code.co_filename.startswith("<attrs generated")


def ready_groups(items: Iterable[Trajectory] | Iterable[TrajectoryGroup]) -> list[TrajectoryGroup]:
    """Return groups whose rollouts are done; loose trajectories become one group.

    Raises ConfigError for rollouts that were not awaited, and for anything else.
    """
    given = list(items)
    loose = [item for item in given if isinstance(item, Trajectory)]
    groups = [item for item in given if isinstance(item, TrajectoryGroup)]
    if len(loose) + len(groups) != len(given) or (loose and groups):
        kinds = sorted({type(item).__name__ for item in given})
        raise ConfigError(f"expected trajectory groups, or trajectories, got {', '.join(kinds)}")
    if any(group.pending for group in groups):
        raise ConfigError(
            "the groups hold rollouts that have not run",
            "Await art.gather_trajectory_groups(groups) first.",
        )
    return [TrajectoryGroup(loose)] if loose else groups
