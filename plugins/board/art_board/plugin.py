"""The hook of art-board. Importing this module imports nothing heavy."""

from __future__ import annotations

from art_core import CommandSpec, hookimpl


@hookimpl
def art_commands() -> list[CommandSpec]:
    """Offer `art board`."""
    from art_board.command import COMMAND

    return [COMMAND]
