"""The plugin's hooks: the backend `serverless` and the command `art serve`. Imports stay light."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable

from art_core import BackendSpec, CommandSpec, Plugins, hookimpl


@hookimpl
def art_backends() -> list[BackendSpec]:
    """Offer the backend `serverless`."""
    return [
        BackendSpec(
            name="serverless",
            create="art_serverless.backend:ServerlessBackend",
            summary="trains and serves elsewhere: W&B Training, or an `art serve` of your own",
        )
    ]


_HELP = """\
examples:
  art serve --backend local                   for this machine only; prints the key's file
  art serve --backend local --host 0.0.0.0 --certfile cert.pem --keyfile key.pem
  art serve --backend local -o device=cuda -o lora_rank=32
  art serve --api tinker --base-model Qwen/Qwen3-0.6B    for programs of the tinker SDK

on the other machine:
  art.backend("serverless", base_url="https://gpu-box:8080/v1", api_key=...)
  tinker.ServiceClient(base_url="https://gpu-box:8080", api_key=...)    of --api tinker

Ctrl-C or SIGTERM stops it in order, a second one at once. The next start completes its jobs.

environment: ART_API_KEY (the key that clients must send), ART_DIR (the directory of models)
"""


def _at_least_zero(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


_at_least_zero.__name__ = "number"  # argparse prints this name


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_at_least_one.__name__ = "number"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        metavar="NAME",
        default="local",
        help="backend that trains and serves (%(default)s)",
    )
    parser.add_argument(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the backend; may be given again",
    )
    parser.add_argument(
        "--api",
        choices=("training", "tinker"),
        default="training",
        help="what clients speak: the API of the backend serverless, or Tinker's (%(default)s)",
    )
    parser.add_argument(
        "--max-models",
        type=_at_least_one,
        default=4,
        metavar="N",
        help="models that clients of --api tinker train at the same time (%(default)s)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (%(default)s)")
    parser.add_argument("--dir", metavar="DIR", help="directory of models (ART_DIR, else .art)")
    parser.add_argument("--no-auth", action="store_true", help="no key; on loopback only")
    parser.add_argument("--certfile", metavar="PEM", help="serve TLS with this certificate")
    parser.add_argument("--keyfile", metavar="PEM", help="the certificate's private key")
    parser.add_argument(
        "--base-model",
        metavar="NAME[=PATH]",
        action="append",
        default=[],
        help="a base model that clients may ask for; may be given again (default: any name)",
    )
    parser.add_argument(
        "--idle-minutes",
        type=_at_least_zero,
        default=30.0,
        metavar="N",
        help="unload a model after so many minutes without a request; 0: never (%(default)g)",
    )
    parser.add_argument(
        "--max-body-mb",
        type=_at_least_zero,
        default=64.0,
        metavar="N",
        help="largest body (%(default)g)",
    )
    parser.add_argument(
        "--grace-s",
        type=_at_least_zero,
        default=60.0,
        metavar="N",
        help="seconds that a stop waits before it cancels the training step; the backends local, "
        "unsloth and tinker finish a step that they began all the same (%(default)g)",
    )


def _serve(arguments: argparse.Namespace, plugins: Plugins) -> Iterable[str]:
    from art_serverless.server.start import serve

    return serve(arguments, plugins)


@hookimpl
def art_commands() -> list[CommandSpec]:
    """Offer `art serve`."""
    return [
        CommandSpec(
            name="serve",
            summary="serve a backend to other machines",
            create=_arguments,
            run=_serve,
            help=_HELP,
        )
    ]
