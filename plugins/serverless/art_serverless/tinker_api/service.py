"""The service: sessions, runs and samplers over the single operations of a backend."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from art_core import ConfigError
from art_core.base.errors import unknown
from art_core.endpoint.errors import RequestError
from art_serverless.tinker_api.checkpoints import Checkpoints, TinkerPath, checked, folder
from art_serverless.tinker_api.futures import Futures, Result
from art_serverless.tinker_api.meter import DeviceMeter
from art_serverless.tinker_api.runs import RunLog, TrainingRun
from art_serverless.tinker_api.samplers import Sampler, Samplers
from art_serverless.tinker_api.sampling import SampleRequest, samples
from art_serverless.tinker_api.sessions import Session, Sessions
from art_serverless.tinker_api.wire import PassRequest

log = logging.getLogger("art_serverless")
T = TypeVar("T")
EPHEMERAL = ".samplers"
"""Folder of weights that are only sampled from, and deleted with their session."""
MAX_EPHEMERAL = 16
"""Samplers without a name that a run has; the oldest makes room for a new one."""


class Service:
    """What the routes do. `primitives` are a backend's single operations; training work runs on one
    thread, in the order of the requests.
    """

    def __init__(
        self, directory: Path, primitives: Any, bases: Mapping[str, Any], max_models: int
    ) -> None:
        self.directory, self.bases = directory, bases
        self.sessions, self.futures = Sessions(), Futures()
        self.runs: dict[str, TrainingRun] = {}
        self.checkpoints = Checkpoints(directory / "models")
        self.meter = DeviceMeter()
        self._primitives, self._max_models = primitives, max_models
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="art-train")
        self.samplers = Samplers(max_models, self._read)
        shutil.rmtree(directory / EPHEMERAL, ignore_errors=True)  # of an earlier server

    def run(self, run_id: str) -> TrainingRun:
        """Return a run of this server, whose session is heard thereby; RequestError (404)."""
        run = self.runs.get(run_id)
        if run is None:
            raise RequestError(
                404,
                f"no model {run_id!r:.200} is loaded: its session has ended, or the server was "
                "restarted. Create a training client from its last checkpoint",
            )
        self.sessions.get(run.session_id)
        return run

    def submit(self, owner: str, seq: int | str | None, work: Coroutine[Any, Any, Result]) -> str:
        """Begin work of an owner, a session, a run or a sampler; return the id of its result."""
        key = secrets.token_hex(8) if seq is None else str(seq)
        return self.futures.submit(owner, key, work)

    async def create_model(self, given: Any) -> Result:
        """Make a run over a base model."""
        session = self.sessions.get(given.session_id)
        base, lora = self._base(given.base_model), given.lora_config
        _check_optimizer(given.optimizer_config)
        if lora is None:
            raise ConfigError("lora_config is missing", "This server trains LoRA adapters.")
        if not (lora.train_mlp and lora.train_attn):
            raise ConfigError(
                "train_mlp=False and train_attn=False are not served here",
                "An adapter has all linear layers but the output head.",
            )
        seed = secrets.randbits(31) if lora.seed is None else lora.seed
        run = await self._opened(session, given, base, lora.rank, seed)
        return {"model_id": run.id, "type": "create_model"}

    async def load_weights(self, given: Any) -> Result:
        """Load a checkpoint into a run, or into a new one."""
        path = TinkerPath.parse(given.path)
        place, manifest = self.checkpoints.read(path)
        if given.session_id is None:
            run = self.run(given.model_id)
        else:
            session = self.sessions.get(given.session_id)
            _check_optimizer(given.optimizer_config)
            base = self._base(given.base_model or manifest["base_model"])
            run = await self._opened(session, given, base, manifest["lora_rank"], 0)

        def load() -> None:
            run.load_now(path, place, manifest, optimizer=given.optimizer)

        try:
            await self._train(run.id, load)
        except BaseException:
            if given.session_id is not None:
                await self._drop(run, "failed")
            raise
        return {"path": given.path, "model_id": run.id, "type": "load_weights"}

    async def forward_backward(self, run: TrainingRun, request: PassRequest) -> Result:
        """Run a pass over data."""
        return await self._train(run.id, lambda: run.pass_now(request))

    async def optim_step(self, run: TrainingRun, params: Any) -> Result:
        """Take an optimizer step, and append its row with what it cost."""
        if type(params).__name__ != "AdamParams":
            raise ConfigError(f"optimizer {params.type!r} is not served here", "Use AdamParams.")
        adam = self._primitives.adam(**params.model_dump())
        metrics = await self._train(run.id, lambda: run.step_now(adam))
        row = await run.log.row(run.step, metrics)
        told = {key: value for key, value in row.items() if key.startswith(("costs/", "loss/"))}
        return {"metrics": told}

    async def save(self, run: TrainingRun, given: Any, kind: str) -> Result:
        """Save weights: those to go on from with their optimizer's state."""
        path = TinkerPath(run.id, kind, checked("name", given.path))

        def save() -> None:
            self.checkpoints.write(
                path,
                {**run.manifest(), "user_metadata": getattr(given, "user_metadata", None)},
                lambda place: run.adapter.save(place, optimizer=kind == "weights"),
                ttl_s=given.ttl_seconds,
                overwrite=getattr(given, "overwrite", False),
            )

        await self._train(run.id, save)
        return {"path": str(path), "type": given.type}

    async def save_for_sampler(self, run: TrainingRun, given: Any) -> Result:
        """Save weights to sample from: under a name, or for a sampler of this session only."""
        if given.kind != "snapshot":
            raise ConfigError("kind='inflight' is not served here", "Use kind='snapshot'.")
        if given.path is not None:
            return await self.save(run, given, "sampler_weights")
        session = self.sessions.get(run.session_id)
        sampler_id = f"{session.id}:sample:{given.sampling_session_seq_id}"
        place = self.directory / EPHEMERAL / folder(sampler_id)

        def save() -> Any:
            place.mkdir(parents=True)
            run.adapter.save(place, optimizer=False)
            return run.adapter.serving

        serving = await self._train(run.id, save)
        sampler = Sampler(
            id=sampler_id, session_id=session.id, base=run.base, owner=run.id,
            adapter=sampler_id, place=place,
        )  # fmt: skip
        self.samplers.add(sampler, serving)
        session.samplers.append(sampler_id)
        run.samplers.append(sampler_id)
        if len(run.samplers) > MAX_EPHEMERAL:
            oldest = run.samplers.pop(0)
            session.samplers.remove(oldest)
            self._forget(oldest)
        return {"sampling_session_id": sampler_id, "type": given.type}

    def create_sampler(self, given: Any) -> str:
        """Make a sampler of a base model or of saved weights; return its id."""
        session = self.sessions.get(given.session_id)
        sampler_id = f"{session.id}:sample:{given.sampling_session_seq_id}"
        owner = f"{session.id}:sampling"
        if given.model_path is None:
            base = self._base(given.base_model)
            sampler = Sampler(id=sampler_id, session_id=session.id, base=base, owner=owner)
        else:
            path = TinkerPath.parse(given.model_path)
            place, manifest = self.checkpoints.read(path)
            base = self._base(manifest["base_model"])
            base.identity.check(str(path), manifest)
            sampler = Sampler(
                id=sampler_id, session_id=session.id, base=base, place=place, path=str(path),
                owner=path.run if path.run in self.runs else owner,
                adapter=f"{path} {manifest['time']}",
            )  # fmt: skip
        if sampler_id not in session.samplers:
            self.samplers.add(sampler)
            session.samplers.append(sampler_id)
        return sampler_id

    async def sample(self, sampler: Sampler, given: Any) -> Result:
        """Sample from a sampler's weights."""
        request = SampleRequest.of(given, sampler.base)
        with self.meter.using(sampler.owner):
            async with self.samplers.using(sampler) as adapter:
                return await samples(request, sampler.base, adapter)

    async def unload(self, run: TrainingRun) -> Result:
        """Drop a run from memory."""
        await self._drop(run, "finished")
        return {"model_id": run.id, "type": "unload_model"}

    async def end(self, session_id: str, status: str = "finished") -> None:
        """End a session: its work stops, its models and samplers leave memory."""
        session = self.sessions.pop(session_id)
        if session is None:
            return
        self.futures.cancel_of(session_id)
        samplers = [self.samplers.get(sampler_id) for sampler_id in session.samplers]
        for sampler_id in session.samplers:
            self._forget(sampler_id)
        for run_id in session.runs:
            if run_id in self.runs:
                await self._drop(self.runs[run_id], status)
        await self._log_sampling(session, samplers, status)

    async def expire(self, silent_s: float) -> None:
        """End silent sessions; forget results and checkpoints whose time is over."""
        for session_id in self.sessions.silent(silent_s):
            log.warning("session %s was not heard for %g s and ends", session_id, silent_s)
            await self.end(session_id, "interrupted")
        self.futures.sweep()
        await asyncio.to_thread(self.checkpoints.sweep)

    async def close(self) -> None:
        """End all sessions."""
        for session_id in self.sessions.ids:
            await self.end(session_id, "interrupted")
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
        await self._primitives.close()

    def _base(self, name: str | None) -> Any:
        if name is None or name not in self.bases:
            raise ConfigError(unknown("base model", str(name), self.bases))
        return self.bases[name]

    async def _opened(
        self, session: Session, given: Any, base: Any, rank: int, seed: int
    ) -> TrainingRun:
        if not 1 <= rank <= base.max_rank:
            raise ConfigError(f"rank {rank} is not served; {base.name} has 1 to {base.max_rank}")
        run_id = f"{session.id}:train:{given.model_seq_id}"
        if len(self.runs) >= self._max_models:
            raise ConfigError(
                f"{len(self.runs)} models are loaded, as many as this server holds",
                "Close a session, or start the server with a larger --max-models.",
            )
        self.runs[run_id] = run = TrainingRun(
            id=run_id,
            session_id=session.id,
            base=base,
            rank=rank,
            adapter=None,  # set below: the place is taken before the wait
            log=RunLog.open(self.directory, run_id, base.name, self.meter, self._primitives),
            primitives=self._primitives,
            user_metadata=given.user_metadata or session.user_metadata,
        )
        try:
            make = self._primitives.adapter
            run.adapter = await self._train(run_id, lambda: make(base, rank, seed))
            run.write_about()
        except BaseException:
            await self._drop(run, "failed")
            raise
        session.runs.append(run_id)
        return run

    async def _drop(self, run: TrainingRun, status: str) -> None:
        if self.runs.pop(run.id, None) is None:
            return
        self.futures.cancel_of(run.id)
        await self._train(run.id, lambda: setattr(run, "adapter", None))
        await run.log.close(status)

    async def _log_sampling(self, session: Session, samplers: list[Sampler], status: str) -> None:
        """Log what sampling cost that belongs to no run of this server."""
        owner = f"{session.id}:sampling"
        if self.meter.peek(owner):
            name = ", ".join(sorted({sampler.base.name for sampler in samplers}))
            log = RunLog.open(self.directory, owner, name, self.meter, self._primitives)
            await log.close(status)

    def _forget(self, sampler_id: str) -> None:
        self.futures.cancel_of(sampler_id)
        self.samplers.remove(sampler_id)
        shutil.rmtree(self.directory / EPHEMERAL / folder(sampler_id), ignore_errors=True)

    async def _train(self, owner: str, work: Callable[[], T]) -> T:
        def metered() -> T:
            with self.meter.using(owner):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, metered)

    async def _read(self, sampler: Sampler) -> Any:
        def read() -> Any:
            return self._primitives.serving_of(sampler.base, sampler.place)

        return await self._train(sampler.owner, read)


def _check_optimizer(config: Any) -> None:
    if config is not None and config.type != "adamw":
        raise ConfigError(f"optimizer {config.type!r} is not served here", "Use adamw.")
