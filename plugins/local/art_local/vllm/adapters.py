"""The LoRA adapters of a vLLM server. Each has a directory, from which a restarted server loads it
again.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

from safetensors import SafetensorError

from art_core.base.errors import EngineError
from art_local.engine.protocol import StepWeights
from art_local.vllm.client import ServerGoneError, VllmClient
from art_local.vllm.loop import LoopThread, within
from art_local.vllm.sleep import Sleep
from art_local.vllm.supervisor import Supervisor

log = logging.getLogger("art_local")


class Adapters:
    """Adapters by name, in their own directory; those of an earlier run are deleted."""

    def __init__(
        self, directory: Path, loop: LoopThread, supervisor: Supervisor, sleep: Sleep
    ) -> None:
        self._directory, self._loop = directory, loop
        self._supervisor, self._timeouts, self._sleep = supervisor, supervisor.timeouts, sleep
        self._paths: dict[str, Path] = {}
        self._number = itertools.count(1)
        self.delete()

    @property
    def names(self) -> list[str]:
        """The names of the adapters that are served."""
        return list(self._paths)

    def publish(self, name: str, weights: StepWeights) -> None:
        """Write an adapter for the server and load it.

        Raises EngineError if it can't be written or loaded; the previous weights stay served.
        """
        # a new path each time, so that the server's prefix cache never mixes two weights
        path = self._directory / f"{next(self._number):06d}-{name}"
        before = self._paths.get(name)
        try:
            _write(weights, path)
            self._paths[name] = path
            limit_s = self._timeouts.start_s + self._timeouts.load_s
            self._loop.run(self._load(name, path), limit_s, f"loading {name}")
        except BaseException:
            if before is None:
                self._paths.pop(name, None)
            else:
                self._paths[name] = before
            shutil.rmtree(path, ignore_errors=True)
            raise
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def unload(self, name: str) -> None:
        """Stop serving an adapter and delete its directory; running requests finish."""
        path = self._paths.pop(name, None)
        if path is None:
            return
        try:
            self._loop.run(self._unload(name), self._timeouts.load_s, f"unloading {name}")
        except EngineError as error:
            # no request names it any more, and a new server does not load it
            log.warning("adapter %s stays in vLLM's server: %s", name, error)
        shutil.rmtree(path, ignore_errors=True)

    async def load_all(self, client: VllmClient) -> None:
        """Load all adapters into a new server."""
        for name, path in list(self._paths.items()):
            await self._load_into(client, name, path)

    async def load_again(self, client: VllmClient, name: str) -> bool:
        """Load an adapter into a server that has lost it; False for an unknown name."""
        path = self._paths.get(name)
        if path is None:
            return False
        await self._load_into(client, name, path)
        return True

    def delete(self) -> None:
        """Delete the adapters' directory."""
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _load(self, name: str, path: Path) -> None:
        async with self._sleep.awake():
            while True:
                client = await self._supervisor.client(self._timeouts.start_s)
                try:
                    return await self._load_into(client, name, path)
                except ServerGoneError as error:
                    # a new server loads all adapters, including this one, before it is ready
                    log.warning("%s", await self._supervisor.cause(client, error))

    async def _load_into(self, client: VllmClient, name: str, path: Path) -> None:
        _check_exists(name, path)
        loading = client.load_adapter(name, str(path))
        await within(self._timeouts.load_s, loading, f"load {name}")

    async def _unload(self, name: str) -> None:
        async with self._sleep.awake():
            client = await self._supervisor.client(self._timeouts.load_s)
            await client.unload_adapter(name)


def _check_exists(name: str, path: Path) -> None:
    if not path.is_dir():
        raise EngineError(
            f"adapter {name!r} cannot be loaded again: its directory {path} does not exist",
            "Restart the program: it continues from the newest checkpoint. Do not delete "
            f"{path.parent} while the run serves.",
        )


def _write(weights: StepWeights, path: Path) -> None:
    try:
        path.mkdir(parents=True)
        weights.write(path)
    except (OSError, SafetensorError) as error:
        raise EngineError(
            f"the adapter could not be written to {path}: {error}", "Free disk space."
        ) from error
