"""Fenced blocks that are not Python: TOML and JSON parse, and commands are those that exist."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from fences import Block, blocks, commands, program, python_faults, shell_lines
from packaging.requirements import Requirement

import art_core as art
from art_core.cli.main import parser

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "compat/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("examples/**/README.md")),
]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
YOURS = {"train.py", "my_art_script.py", "mails.py", "shop_server.py"}
"""Scripts that a reader writes."""

ELSEWHERE = {"run", "rate"}
"""Commands of `art` that are not ours: of ART itself, and of a plugin that a page writes."""


@cache
def command_line() -> argparse.ArgumentParser:
    return parser(art.Plugins.discover())


@cache
def distributions() -> dict[str, set[str]]:
    """Return our distributions with their extras."""
    files = [ROOT / "pyproject.toml", *ROOT.glob("compat/*.toml"), *ROOT.glob("plugins/*/*.toml")]
    projects = [tomllib.loads(file.read_text())["project"] for file in files]
    return {p["name"]: set(p.get("optional-dependencies", {})) for p in projects}


def art_faults(words: list[str]) -> Iterator[str]:
    """Yield why `art` would not take these words."""
    asked = [word for word in words[1:] if word != "..."]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            command_line().parse_args(asked)
        except SystemExit as ended:
            fault = said.getvalue().strip().splitlines()[-1] if ended.code else ""
            if fault and "there is no directory" not in fault:  # a reader makes it
                yield fault


def pip_faults(words: list[str]) -> Iterator[str]:
    """Yield what a `pip install` names and we do not have."""
    for word in words[2:] if words[1:2] == ["install"] else ():
        path, _, extras = word.partition("[")
        if word.startswith("./") or path == ".":
            file = ROOT / path / "pyproject.toml"
            name = tomllib.loads(file.read_text())["project"]["name"] if file.exists() else path
            needed, asked = name, set(filter(None, extras.rstrip("]").split(",")))
        elif word.startswith("art-"):
            requirement = Requirement(word)
            needed, asked = requirement.name, set(requirement.extras)
        else:
            continue
        if needed not in distributions():
            yield f"no distribution {needed!r}"
        elif not asked <= distributions()[needed]:
            yield f"{needed} has no extra of {sorted(asked - distributions()[needed])}"


def faults_of(words: list[str], before: str = "") -> Iterator[str]:
    """Yield what is wrong with a command."""
    match program(words):
        case "art":
            yield from art_faults(words)
        case "pip":
            yield from pip_faults(words)
        case "make":
            named = [w for w in words[1:] if re.fullmatch("[a-z]+", w)]
            yield from (f"no target {word!r}" for word in named if word not in TARGETS)
        case "python" | "sh" | "node" | "bash" | "tsx":
            for script in (w for w in words[1:] if re.fullmatch(r"[\w./-]+\.(py|sh|mjs|ts)", w)):
                if script not in YOURS and not (ROOT / before / script).exists():
                    yield f"no file {script}"


def block_faults(block: Block) -> Iterator[str]:
    """Yield what is wrong with a block."""
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif lines := list(shell_lines(block)):
        folder = ""
        for line in lines:
            for words in commands(line):
                if words[0] == "cd":
                    folder = words[1]
                yield from (f"{line}: {fault}" for fault in faults_of(words, folder))
    elif block.language == "":
        yield from python_faults(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_that_is_not_run_names_what_exists(page: Path):
    if page.name == "reference.md":
        pytest.skip("its blocks are signatures, written from the code")
    found = [
        f"{page.relative_to(ROOT)}:{block.line}: {fault}"
        for block in blocks(page)
        for fault in block_faults(block)
    ]
    assert found == []


def subcommands(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    return groups[0].choices if groups else {}


def inline(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `art ...` in the text of a page."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`\.?[\w/]*(art [^`]+)`", text):
        for part in re.split(r"\s[|;]\s|&&", span.replace("\\|", "|")):
            yield part.replace("\n", " ").split()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_the_text_has_its_name_and_options(page: Path):
    found = []
    for words in inline(page):
        command, rest = command_line(), words[1:]
        while rest and (names := subcommands(command)):
            if rest[0] in ELSEWHERE or not re.fullmatch("[a-z][a-z-]*", rest[0]):
                break  # a placeholder, or an option of `art` itself
            if rest[0] not in names:
                found.append(f"{' '.join(words)}: no command {rest[0]!r}")
                break
            command, rest = names[rest[0]], rest[1:]
        else:
            options = {o for action in command._actions for o in action.option_strings}
            own = takewhile(lambda word: word not in ("--", "[--", "[--..."), rest)
            asked = {w.partition("=")[0].strip("[],.:") for w in own if w.startswith(("--", "[--"))}
            found += [f"{' '.join(words)}: no option {o}" for o in sorted(asked - options)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("art show agent-001 --nonsense", "unrecognized arguments: --nonsense"),
        ("$ art leader", "invalid choice"),
        ("pip install 'art-core[gpu]' ./plugins/local", "has no extra of ['gpu']"),
        ("pip install art-nothing", "no distribution 'art-nothing'"),
        ("make quickstrat", "no target 'quickstrat'"),
        ("ART_STEPS=2 python examples/first_lop.py", "no file examples/first_lop.py"),
        ("import art_core as art\nart.Trajectroy()", "has no 'Trajectroy'"),
        ("import art_core as art\nart.Schedule(1.0, peek=2)", "no parameter 'peek'"),
        ("from art_core.testing.echo import EcoBackend", "has no 'EcoBackend'"),
    ],
)
def test_a_block_that_names_nothing_is_found(text: str, fault: str):
    (found,) = block_faults(Block("", 1, text))
    assert fault in found
