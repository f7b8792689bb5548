"""Commands that plugins add to `art`, and the values that commands return."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from art_core.hooks.host import Plugins


@attrs.frozen(kw_only=True)
class Column:
    """A column of a printed table: the key of its values, and their form.

    - `key` names the value; "" stands for the whole row.
    - `form` is a format spec such as ".3f", or a function of the value. None is shown as `missing`.
    - `right` aligns numbers; they are never shortened, nor are the cells of a column that is
      `whole`. `wrap` breaks prose over several lines.
    - A narrow terminal leaves out the columns of the highest `rank` first, never those of rank 0.
    """

    key: str
    heading: str | None = None
    form: str | Callable[[Any], str] = ""
    missing: str = "-"
    right: bool = False
    whole: bool = False
    wrap: bool = False
    rank: int = 0

    @property
    def title(self) -> str:
        """The heading, which is the key unless another one was given."""
        return self.key if self.heading is None else self.heading


@attrs.frozen(kw_only=True)
class Table:
    """Rows that a command returns: a table for people; with `--json` a list of objects.

    The JSON document has the list under `name`, with all values of each row, unrounded. People see
    `columns`, in their order, or the line `empty` when there are no rows.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    empty: str = ""


@attrs.frozen
class Record:
    """Single values that a command returns: fields of the JSON document; for people, `text`."""

    values: Mapping[str, Any]
    text: Iterable[str] = ()


@attrs.frozen
class ExitStatus:
    """The exit status of a command whose check failed."""

    status: int


Output = str | Table | Record | ExitStatus
"""A part of a command's answer. A text is for people: with `--json` it goes to standard error."""


@attrs.frozen(kw_only=True)
class CommandSpec:
    """`art <name>`, offered by a plugin.

    `create(parser)` adds its arguments; `run(arguments, plugins)` does the work, imports heavy
    modules and yields output: lines of text, a `Table`, a `Record`. Every command has the option
    `--json`, unless `create` adds its own. `help` is the text below the options, with examples.
    """

    name: str
    summary: str
    create: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Plugins], Iterable[Output]]
    help: str = ""
