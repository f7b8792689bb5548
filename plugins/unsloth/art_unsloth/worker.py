"""The worker process: `python -m art_unsloth.worker FD PARENT_PID`.

It imports Unsloth before torch and transformers, and runs the local backend for the requests that
come over the socket.
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

from art_core import ArtError, GpuTime, Plugins, TrajectoryGroup
from art_unsloth import wire

if TYPE_CHECKING:
    from art_unsloth.training import UnslothLocal

PARENT_CHECKS_S = 1.0

Send = Callable[[dict[str, Any]], None]


@attrs.frozen(kw_only=True)
class ModelProxy:
    """A model of the parent process: the attributes that the local backend reads of it."""

    name: str
    project: str
    base_model: str
    run_dir: Path
    plugins: Plugins
    send: Send

    def charge(self, time: GpuTime) -> None:
        """Send a charge to the parent process, which adds it to the model."""
        self.send({"charge": attrs.asdict(time), "run_dir": str(self.run_dir)})


class WorkerBackend:
    """The worker's operations: each is a method with plain values in and out, but for `model`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._backend: UnslothLocal | None = None
        self._plugins: Plugins | None = None

    async def answer(self, message: dict[str, Any]) -> None:
        """Run the operation of a message; send its result or its error."""
        operation, values = getattr(self, message["operation"]), message["values"]
        try:
            if "model" in values:
                values = values | {"model": self._model(**values["model"])}
            outcome = {"answer": await operation(**values)}
        except Exception as error:
            outcome = {"error": wire.error_values(error)}
            if not isinstance(error, ArtError):
                traceback.print_exc()  # the traceback is for stderr; the parent gets the message
        self._send({"number": message["number"], **outcome})

    async def open(self, options: dict[str, Any], path: list[str]) -> list[dict[str, Any]]:
        """Import Unsloth and create the backend; return the devices that it charges for."""
        sys.path.extend(entry for entry in path if entry not in sys.path)
        from art_unsloth.prepare import import_unsloth

        import_unsloth(options["device"])
        from art_unsloth.training import UnslothLocal

        self._backend = UnslothLocal(**options)
        return [attrs.asdict(held) for held in self._backend.charged_devices()]

    async def register(self, model: Any, step: int | None = None) -> dict[str, Any]:
        """Load a model; return its endpoint."""
        return attrs.asdict(await self._opened.register(model, step=step))

    async def unregister(self, model: Any) -> None:
        """Free what a model holds."""
        await self._opened.unregister(model)

    async def train(
        self, model: Any, groups: list[dict[str, Any]], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Run a step; return its `TrainResult` as values."""
        decoded = [TrajectoryGroup.from_dict(group) for group in groups]
        result = await self._opened.train(model, decoded, **wire.options_of(options))
        return wire.result_values(result)

    async def train_sft(
        self, model: Any, batches: list[dict[str, Any]], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Run a step of supervised fine-tuning; return its `TrainResult` as values."""
        decoded = [list(TrajectoryGroup.from_dict(batch)) for batch in batches]
        result = await self._opened.train_sft(model, decoded, **wire.options_of(options))
        return wire.result_values(result)

    async def check_sft(self, model: Any, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the sizes of examples as values."""
        examples = [each for batch in batches for each in TrajectoryGroup.from_dict(batch)]
        return [attrs.asdict(size) for size in await self._opened.check_sft(model, examples)]

    async def step(self, model: Any) -> int:
        """Return the step of the newest weights."""
        return await self._opened.step(model)

    async def checkpoints(self, model: Any) -> list[tuple[int, str]]:
        """Return steps and directories."""
        return [(c.step, str(c.path)) for c in await self._opened.checkpoints(model)]

    async def delete_checkpoints(self, model: Any, keep: list[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest."""
        return await self._opened.delete_checkpoints(model, keep)

    async def close(self) -> None:
        """Stop serving and free the device."""
        await self._opened.close()

    @property
    def _opened(self) -> UnslothLocal:
        assert self._backend is not None
        return self._backend

    def _model(self, run_dir: str, **identity: str) -> ModelProxy:
        self._plugins = self._plugins or Plugins.discover()
        return ModelProxy(run_dir=Path(run_dir), plugins=self._plugins, send=self._send, **identity)


async def serve(connection: socket.socket) -> None:
    """Answer the requests of the socket, several at a time, until the other side disconnects."""
    loop, sending = asyncio.get_running_loop(), threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with sending:
            connection.sendall(wire.encoded(message))

    backend = WorkerBackend(send)

    def listen() -> None:
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    asyncio.run_coroutine_threadsafe(backend.answer(wire.decoded(line)), loop)
        finally:
            # The parent has disconnected. Files are whole; a step under way is dropped.
            os._exit(0)

    threading.Thread(target=listen, name="art-unsloth-listen", daemon=True).start()
    await asyncio.Event().wait()


def end_with(parent: int) -> None:
    """End this process when its parent has ended: children of the parent may keep the socket open.

    PR_SET_PDEATHSIG does not fit: the kernel sends it when the *thread* ends that started this
    process.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECKS_S)
    os._exit(0)


def main(descriptor: int, parent: int) -> None:
    """Serve the process at the other end of a socket until it ends."""
    threading.Thread(
        target=end_with, args=(parent,), name="art-unsloth-parent", daemon=True
    ).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(serve(socket.socket(fileno=descriptor)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
