"""The LoRA adapters that a vLLM server has: a directory each, loaded, and loaded again when the
server was started anew.
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
from art_local.vllm.sleep import Rest
from art_local.vllm.supervisor import Supervisor

log = logging.getLogger("art_local")


class Adapters:
    """Adapters by name, in a directory of their own; those of an earlier run are deleted."""

    def __init__(
        self, directory: Path, loop: LoopThread, supervisor: Supervisor, rest: Rest
    ) -> None:
        self._directory, self._loop = directory, loop
        self._supervisor, self._patience, self._rest = supervisor, supervisor.patience, rest
        self._places: dict[str, Path] = {}
        self._written = itertools.count(1)
        self.delete()

    @property
    def names(self) -> list[str]:
        """The names of the adapters that are served."""
        return list(self._places)

    def publish(self, name: str, weights: StepWeights) -> None:
        """Write an adapter for the server and load it.

        Raises EngineError when the disk or the server does not take it; what was served before is
        served still.
        """
        # A path of its own each time: the server's prefix cache then never mixes two weights.
        place = self._directory / f"{next(self._written):06d}-{name}"
        before = self._places.get(name)
        try:
            _write(weights, place)
            self._places[name] = place
            limit_s = self._patience.start_s + self._patience.load_s
            self._loop.run(self._load(name, place), limit_s, f"loading {name}")
        except BaseException:
            if before is None:
                self._places.pop(name, None)
            else:
                self._places[name] = before
            shutil.rmtree(place, ignore_errors=True)
            raise
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def unload(self, name: str) -> None:
        """Stop serving an adapter and delete its directory; requests under way finish."""
        place = self._places.pop(name, None)
        if place is None:
            return
        try:
            self._loop.run(self._unload(name), self._patience.load_s, f"unloading {name}")
        except EngineError as error:
            # it is not asked for any more, and a new server will not have it
            log.warning("adapter %s stays in vLLM's server: %s", name, error)
        shutil.rmtree(place, ignore_errors=True)

    async def load_all(self, client: VllmClient) -> None:
        """Load all adapters into a new server."""
        for name, place in list(self._places.items()):
            await self._load_into(client, name, place)

    async def load_again(self, client: VllmClient, name: str) -> bool:
        """Load an adapter into a server that does not know it; False for a name that is not one."""
        place = self._places.get(name)
        if place is None:
            return False
        await self._load_into(client, name, place)
        return True

    def delete(self) -> None:
        """Delete the adapters' directory."""
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _load(self, name: str, place: Path) -> None:
        async with self._rest.work():
            while True:
                client = await self._supervisor.client(self._patience.start_s)
                try:
                    return await self._load_into(client, name, place)
                except ServerGoneError as error:
                    # a new server loads all adapters, this one too, before it counts as ready
                    log.warning("%s", await self._supervisor.why(client, error))

    async def _load_into(self, client: VllmClient, name: str, place: Path) -> None:
        _check_there(name, place)
        loading = client.load_adapter(name, str(place))
        await within(self._patience.load_s, loading, f"load {name}")

    async def _unload(self, name: str) -> None:
        async with self._rest.work():
            client = await self._supervisor.client(self._patience.load_s)
            await client.unload_adapter(name)


def _check_there(name: str, place: Path) -> None:
    if not place.is_dir():
        raise EngineError(
            f"adapter {name!r} cannot be loaded again: its directory {place} is gone",
            "Start the program again: it goes on from the newest checkpoint. Leave "
            f"{place.parent} to the run as long as it serves.",
        )


def _write(weights: StepWeights, place: Path) -> None:
    try:
        place.mkdir(parents=True)
        weights.write(place)
    except (OSError, SafetensorError) as error:
        raise EngineError(
            f"the adapter could not be written to {place}: {error}", "Free disk space."
        ) from error
