"""A Dockerfile, as far as it can be followed without an image."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs

from art_core import ConfigError

_LEFT_OUT = frozenset({"FROM", "CMD", "ENTRYPOINT", "EXPOSE", "LABEL", "MAINTAINER", "STOPSIGNAL"})
_FOLLOWED = frozenset({"WORKDIR", "ENV", "COPY", "ADD", "RUN"})
_ELSEWHERE = ("--from", "--chown", "--chmod", "http://", "https://", "<<")


@attrs.frozen
class Instruction:
    """An instruction: its name in capitals, and what follows it."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """What follows, split as a shell does."""
        return shlex.split(self.text)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of an ENV."""
        first, _, rest = self.text.partition(" ")
        if "=" not in first:
            return {first: rest.strip()}
        return dict(word.split("=", 1) for word in self.words)


def instructions(file: Path) -> Iterator[Instruction]:
    """Yield the instructions of a Dockerfile that matter without its image; ConfigError for one
    that needs it.
    """
    if not file.is_file():
        return
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.strip().partition(" ")
        found = Instruction(name.upper(), rest.strip())
        if found.name in _LEFT_OUT:
            continue
        if found.name not in _FOLLOWED or any(mark in found.text for mark in _ELSEWHERE):
            raise ConfigError(
                f"{line.strip()!r:.80} in {file} needs an image",
                'Take sandbox="docker" or "podman".',
            )
        yield found
