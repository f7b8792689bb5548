"""`art init DIRECTORY`: the files of an agent that `art train` trains."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.cli.completion import backend_names, completed
from art_core.cli.new import rendered
from art_core.hooks.commands import Output, Record
from art_core.hooks.host import Plugins

_HELP = """\
Writes an agent into a new or empty directory: the code, scenarios to train on and others to
evaluate on, art.toml with the settings, a test and a README. Without a kind it asks for one in a
terminal, and else writes a chat. Nothing is overwritten.

examples:
  art init demo                          then: art train demo
  art init shop --tools --base-model Qwen/Qwen3-1.7B
  art init guess --environment --backend unsloth
"""
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WITH_TOOLS = "Qwen/Qwen3-0.6B"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@attrs.frozen(kw_only=True)
class Kind:
    """A kind of agent: what its files do, and the values of `art.toml` for it."""

    about: str
    content: str
    target: str
    judge: bool = False
    base_model: str = SMALL
    note: str = ""


KINDS = {
    "chat": Kind(
        about="An agent that answers questions with one word.",
        content="one attempt at a question, and its reward",
        target="rollout",
    ),
    "tools": Kind(
        about="An agent that looks prices up with a tool and adds them.",
        content="the tool, the environment of one attempt, and its reward",
        target="shop",
        base_model=WITH_TOOLS,
        note="\nThe chat template of the base model must know tools, as that of Qwen3 does.",
    ),
    "judge": Kind(
        about="An agent that answers customers; a language model compares its answers (RULER).",
        content="one attempt at an answer, and the judge of a group",
        target="rollout",
        judge=True,
        note="\nThe judge is `JUDGE_MODEL`, by default openai/gpt-4.1-mini with `OPENAI_API_KEY`. "
        "Each call\nof it is priced, at `costs/train/judge/ruler`.",
    ),
    "environment": Kind(
        about="An agent that guesses a number in several turns, with a hint after each.",
        content="the environment of one attempt, and its reward",
        target="guess",
    ),
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("init", help="write an agent to train", epilog=_HELP)
    parser.add_argument("directory", metavar="DIRECTORY", type=Path)
    kinds = parser.add_mutually_exclusive_group()
    for name, kind in KINDS.items():
        kinds.add_argument(
            f"--{name}", dest="kind", action="store_const", const=name, help=kind.about
        )
    parser.add_argument("--base-model", metavar="MODEL", help="what it starts from")
    backend = parser.add_argument("--backend", metavar="NAME", default="local")
    completed(backend, backend_names)
    parser.set_defaults(run=run_init)


def run_init(arguments: argparse.Namespace, _: Plugins) -> Iterator[Output]:
    """Write the files; yield their paths and the next steps."""
    target: Path = arguments.directory
    name = target.resolve().name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r:.80} can't be the name of a run",
            "Use letters, digits, dots, hyphens and underscores, 64 at most.",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there and not empty", "Choose another directory.")
    chosen = arguments.kind or _asked()
    kind = KINDS[chosen]
    words = {
        **{field: str(value) for field, value in attrs.asdict(kind).items()},
        "name": name,
        "judge_line": '\njudge = "agent.py:judge"' if kind.judge else "",
        "base_model": arguments.base_model or kind.base_model,
        "backend": arguments.backend,
    }
    files = rendered("init/common", words) | rendered(f"init/{chosen}", words)
    target.mkdir(parents=True, exist_ok=True)
    for path, text in sorted(files.items()):
        (target / path).write_text(text, encoding="utf-8")
    paths = [target / path for path in sorted(files)]
    after = f"art train {shlex.quote(os.fspath(target))}"
    yield Record(
        {"kind": chosen, "files": paths, "next": after}, [*map(str, paths), "", f"next: {after}"]
    )


def _asked() -> str:
    """Ask for the kind in a terminal; the first one elsewhere."""
    names = list(KINDS)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return names[0]
    for number, kind in enumerate(KINDS.values(), 1):
        print(f"{number}  {names[number - 1]:12} {kind.about}", file=sys.stderr)
    while True:
        print(f"which? [1 to {len(names)}, default 1] ", end="", file=sys.stderr, flush=True)
        said = sys.stdin.readline().strip() or "1"
        if said in names:
            return said
        if said.isdecimal() and 0 < int(said) <= len(names):
            return names[int(said) - 1]
