"""The worker: `python -m art_unsloth.worker FD PARENT_PID`. Unsloth is imported here, before all
else that is heavy, and the local backend does what is asked over the socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import ArtError, ConfigError, GpuTime, Plugins, TrajectoryGroup
from art_unsloth import wire

if TYPE_CHECKING:
    from art_unsloth.training import UnslothLocal

PARENT_CHECKS_S = 1.0

Send = Callable[[dict[str, Any]], None]


@attrs.frozen(kw_only=True)
class StandIn:
    """What the local backend needs of a model that lives in another process."""

    name: str
    project: str
    base_model: str
    run_dir: Path
    plugins: Plugins
    send: Send

    def charge(self, time: GpuTime) -> None:
        """Send what is charged to the model itself."""
        self.send({"charge": attrs.asdict(time), "key": str(self.run_dir)})


class Serving:
    """The operations that can be asked for, each a method with plain values in and out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._backend: UnslothLocal | None = None
        self._plugins: Plugins | None = None
        self._models: dict[str, StandIn] = {}

    async def answer(self, message: dict[str, Any]) -> None:
        """Do what a message asks for and send the answer, or the error."""
        operation = getattr(self, message["operation"])
        try:
            outcome = {"answer": await operation(**message["values"])}
        except Exception as error:
            outcome = {"error": wire.error_values(error)}
            if not isinstance(error, ArtError):
                traceback.print_exc()  # where it comes from is told on stderr
        self._send({"number": message["number"], **outcome})

    async def open(self, options: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
        """Import Unsloth, and make the backend; return the devices that it charges for."""
        sys.path.extend(entry for entry in path if entry not in sys.path)
        from art_unsloth.prepare import import_unsloth

        import_unsloth(options["device"])
        from art_unsloth.training import UnslothLocal

        self._models.clear()
        self._plugins = self._plugins or Plugins.discover()
        self._backend = UnslothLocal(**options)
        return [attrs.asdict(held) for held in self._backend.charged_devices()]

    async def register(self, key: str, step: int | None = None, **told: str) -> dict[str, Any]:
        """Load a model; return its endpoint."""
        assert self._plugins is not None
        model = StandIn(run_dir=Path(key), plugins=self._plugins, send=self._send, **told)
        endpoint = await self._opened.register(model, step=step)  # type: ignore[arg-type]
        self._models[key] = model
        return attrs.asdict(endpoint)

    async def unregister(self, key: str) -> None:
        """Free what a model holds."""
        model = self._models.pop(key, None)
        if model is not None:
            await self._opened.unregister(model)  # type: ignore[arg-type]

    async def train(
        self, key: str, groups: list[dict[str, Any]], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Run a step; return what it did."""
        model = self._model(key)
        read = [TrajectoryGroup.from_dict(group) for group in groups]
        result = await self._opened.train(model, read, **wire.options_of(options))
        return {
            "step": result.step,
            "metrics": result.metrics,
            "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        }

    async def step(self, key: str) -> int:
        """Return the step of the newest weights."""
        return await self._opened.step(self._model(key))

    async def checkpoints(self, key: str) -> list[tuple[int, str]]:
        """Return steps and directories."""
        return [(c.step, str(c.path)) for c in await self._opened.checkpoints(self._model(key))]

    async def delete_checkpoints(self, key: str, keep: list[int]) -> list[int]:
        """Delete all but those steps and the newest."""
        return await self._opened.delete_checkpoints(self._model(key), keep)

    async def close(self) -> None:
        """Stop serving and free the device."""
        await self._opened.close()

    @property
    def _opened(self) -> UnslothLocal:
        assert self._backend is not None
        return self._backend

    def _model(self, key: str) -> Any:
        if key not in self._models:
            raise ConfigError(
                f"model {Path(key).name!r} is not registered with this backend",
                "Call await model.register(backend) first.",
            )
        return self._models[key]


async def serve(connection: socket.socket) -> None:
    """Answer what comes over the socket, several at a time, until the other side hangs up."""
    loop, sending = asyncio.get_running_loop(), threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with sending:
            connection.sendall(wire.encoded(message))

    serving = Serving(send)

    def listen() -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    asyncio.run_coroutine_threadsafe(serving.answer(wire.decoded(line)), loop)
        finally:
            # Nobody is there to answer to. What is on disk is whole; a step under way is not kept.
            os._exit(0)

    threading.Thread(target=listen, name="art-unsloth-listen", daemon=True).start()
    await asyncio.Event().wait()


def end_with(parent: int) -> None:
    """End this process when its parent has ended: the socket may live on in the parent's children.

    Not PR_SET_PDEATHSIG: that is sent when the parent's *thread* ends that started this process.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECKS_S)
    os._exit(0)


def main(descriptor: int, parent: int) -> None:
    """Serve the process at the other end of a socket, as long as it lives."""
    threading.Thread(
        target=end_with, args=(parent,), name="art-unsloth-parent", daemon=True
    ).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(serve(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
