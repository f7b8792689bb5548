"""`art gateway`: trains a model on attempts of agents in other processes and languages."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_budget, add_directory, given_budget
from art_core.cli.completion import backend_names, completed
from art_core.cli.retrain import option_values
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins
from art_core.model.backend import backend as make_backend
from art_core.model.trainable import TrainableModel

if TYPE_CHECKING:
    from art_core.gateway.gateway import Gateway

_HELP = """\
Serves a gateway, and trains a step on each --groups groups of --size attempts. Agents in any
language begin and end attempts over HTTP; docs/gateway.md has the routes. Ctrl-C ends it, and the
same command continues the run. The key is $ART_GATEWAY_KEY, else a random one, which is printed.

examples:
  art gateway --model agent-001 --base-model HuggingFaceTB/SmolLM2-135M-Instruct
  art gateway --model agent-001 --base-model Qwen/Qwen3-0.6B --size 16 --set learning_rate=1e-5
  art gateway ... --host 0.0.0.0 --port 8400 --allow-remote --certfile cert.pem --keyfile key.pem
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "gateway", help="train on attempts of agents in any language, over HTTP", epilog=_HELP
    )
    option = parser.add_argument
    option("--model", metavar="NAME", required=True, help="the name of the run")
    option("--base-model", metavar="MODEL", required=True, help="the model that is trained")
    option("--project", metavar="NAME", default="gateway", help="(%(default)s)")
    option("--steps", type=int, metavar="N", help="end after N steps (with Ctrl-C only)")
    option("--groups", type=int, metavar="N", default=1, help="groups of a step (%(default)s)")
    option("--size", type=int, metavar="N", default=8, help="attempts of a group (%(default)s)")
    option(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of training"
    )
    completed(option("--backend", metavar="NAME", help="($ART_BACKEND, else local)"), backend_names)
    option(
        "--backend-set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the backend",
    )  # fmt: skip
    option("--timeout", type=float, metavar="S", default=3600.0, help="seconds of an attempt")
    option("--host", metavar="ADDRESS", default="127.0.0.1", help="(%(default)s)")
    option("--port", type=int, metavar="N", default=0, help="(a free one)")
    option("--allow-remote", action="store_true", help="other machines may reach --host")
    option("--certfile", metavar="PEM", help="serve TLS with this certificate")
    option("--keyfile", metavar="PEM", help="the certificate's key")
    add_budget(parser)
    add_directory(parser)
    parser.set_defaults(run=run_gateway)


def run_gateway(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Serve and train; yield the address, and the result of each step."""
    if arguments.groups < 1:
        raise ConfigError(f"--groups must be at least 1, got {arguments.groups}")
    steps = math.inf if arguments.steps is None else arguments.steps
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            model, gateway = runner.run(_opened(arguments, stack))
            given = os.environ.get("ART_GATEWAY_KEY")
            facts = {"url": gateway.url, "key": None if given else gateway.api_key}
            key = "$ART_GATEWAY_KEY" if given else gateway.api_key
            lines = [f"export GATEWAY_URL={gateway.url}", f"export GATEWAY_KEY={key}"]
            yield Record(facts, lines)
            while steps > 0:
                yield runner.run(_step(arguments, model, gateway))
                steps -= 1
        finally:
            runner.run(stack.__aexit__(*sys.exc_info()))  # the run's status depends on the error


async def _opened(
    arguments: argparse.Namespace, stack: AsyncExitStack
) -> tuple[TrainableModel, Gateway]:
    name = arguments.backend or os.environ.get("ART_BACKEND") or "local"
    backend = make_backend(name, **option_values(arguments.backend_set))
    stack.push_async_callback(backend.close)
    model = TrainableModel(
        name=arguments.model,
        project=arguments.project,
        base_model=arguments.base_model,
        base_path=arguments.dir,
        budget=given_budget(arguments),
    )
    gateway_options = {
        "host": arguments.host,
        "port": arguments.port,
        "api_key": os.environ.get("ART_GATEWAY_KEY") or None,
        "attempt_timeout_s": arguments.timeout,
        "allow_remote": arguments.allow_remote,
        "ssl_certfile": arguments.certfile,
        "ssl_keyfile": arguments.keyfile,
    }
    await stack.enter_async_context(model)
    await model.register(backend)
    return model, await stack.enter_async_context(model.gateway(**gateway_options))


async def _step(arguments: argparse.Namespace, model: TrainableModel, gateway: Gateway) -> str:
    groups = [await gateway.group(size=arguments.size) for _ in range(arguments.groups)]
    result = await model.train(groups, **option_values(arguments.set))
    rewards = [reward for group in groups for reward in group.rewards]
    mean = f"{math.fsum(rewards) / len(rewards):.3f}" if rewards else "none"
    failures = sum(len(group.failures) for group in groups)
    return f"step {result.step}: mean reward {mean} of {len(rewards)} attempts, {failures} failures"
