"""A command that a plugin adds to `art`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from art_core.plugins.host import Plugins


@attrs.frozen(kw_only=True)
class CommandSpec:
    """`art <name>`, offered by a plugin.

    `create(parser)` adds its arguments; `run(arguments, plugins)` does the work, yields the lines
    to print and imports what is heavy. `help` is the text below the options: examples, mostly.
    """

    name: str
    summary: str
    create: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Plugins], Iterable[str]]
    help: str = ""
