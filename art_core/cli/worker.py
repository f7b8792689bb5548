"""`art worker`: makes attempts of a run that is trained elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_budget, limited
from art_core.cli.evaluation import imported
from art_core.data.trajectory import RolloutResult
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.model.leased import LeasedModel
from art_core.queue.remote import PATIENCE_S, RemoteQueue
from art_core.queue.values import Lease
from art_core.queue.version import version_of
from art_core.queue.worker import QueueWorker

_HELP = """\
Leases attempts from the queue of a run, makes them with TARGET, an async function of a model
and a scenario, and submits them. The server is a gateway with a queue (docs/queue.md). The worker
ends when the queue is finished. Ctrl-C lets the attempts that run end, a second one gives
them back. The key is $ART_GATEWAY_KEY, or --key.

examples:
  art worker my_agent:rollout --server http://127.0.0.1:8400
  art worker my_agent:rollout --server https://trainer.example:8400 --concurrent 64 --timeout 600
"""
Rollout = Callable[[Any, Any], Awaitable[RolloutResult]]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "worker", help="make attempts of a run that is trained elsewhere", epilog=_HELP
    )
    option = parser.add_argument
    option("target", metavar="TARGET", help="the rollout, as module:function")
    option("--server", metavar="URL", required=True, help="the URL of the gateway")
    option("--key", metavar="KEY", help="the gateway's key ($ART_GATEWAY_KEY)")
    option("--concurrent", type=int, metavar="N", default=8, help="attempts at once (%(default)s)")
    option("--timeout", type=float, metavar="S", help="seconds of an attempt")
    option("--name", metavar="NAME", help="the worker's name (host and process)")
    option(
        "--patience", type=float, metavar="S", default=PATIENCE_S,
        help="seconds to wait for a server that is away (%(default)g)",
    )  # fmt: skip
    add_budget(parser)
    parser.set_defaults(run=run_worker)


def run_worker(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Work until the queue is finished; yield what became of the attempts."""
    if arguments.concurrent < 1:
        raise ConfigError(f"--concurrent must be at least 1, got {arguments.concurrent}")
    key = arguments.key or os.environ.get("ART_GATEWAY_KEY")
    if not key:
        raise ConfigError("the gateway's key is missing", "Give --key, or set ART_GATEWAY_KEY.")
    with limited(arguments):
        done = asyncio.run(_worked(arguments, key, imported(arguments.target)))
    yield done


async def _worked(arguments: argparse.Namespace, key: str, rollout: Rollout) -> Record:
    async with RemoteQueue(arguments.server, key, patience_s=arguments.patience) as queue:
        model = LeasedModel(name="worker", project="worker", sinks=[])

        def attempt(lease: Lease) -> Awaitable[RolloutResult]:
            model.inference_base_url, model.inference_model_name = queue.reached
            return _attempt(rollout, model, lease)

        worker = QueueWorker(
            queue=queue,
            attempt=attempt,
            name=arguments.name or f"{socket.gethostname()}-{os.getpid()}",
            concurrent=arguments.concurrent,
            version=version_of(rollout),
            timeout=arguments.timeout,
        )
        try:
            await _until_stopped(worker)
        finally:
            await model.close()
    facts = {"worker": worker.name, "version": worker.version, **worker.replies}
    counted = ", ".join(f"{n} {reply}" for reply, n in worker.replies.most_common())
    return Record(facts, [f"{worker.name}: {counted or 'no attempts'}"])


async def _attempt(rollout: Rollout, model: LeasedModel, lease: Lease) -> RolloutResult:
    model.begin(lease.key)
    return await rollout(model, lease.scenario.value)


async def _until_stopped(worker: QueueWorker) -> None:
    """Run a worker; a first Ctrl-C or SIGTERM stops leasing, a second one gives attempts back."""
    loop, running = asyncio.get_running_loop(), asyncio.create_task(worker.run())
    asked: list[int] = []

    def stop(number: int) -> None:
        asked.append(number)
        if len(asked) == 1:
            print("art: no more leases; Ctrl-C again gives back what runs", file=sys.stderr)
            worker.stop()
        else:
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await asyncio.wait((running,))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if not running.cancelled():
        running.result()
