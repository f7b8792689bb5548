"""The fenced blocks of pages, and the shell commands in them."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import art_core as art

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELL = ("art", "cd", "docker", "export", "git", "make", "mkdir", "pip", "python", "ssh")
JOINTS = ("|", "||", "&&", ";", "&", "do", "done", "then")


class Block(NamedTuple):
    language: str
    line: int
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, with the line that each begins at."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield Block(found[2], text.count("\n", 0, found.start()) + 1, found[3])


def shell_lines(block: Block) -> Iterator[str]:
    """Yield the lines that are typed: those after `$`, else all of a block of commands."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    if prompted or block.language == "console":
        yield from prompted
    elif block.language in ("", "bash") and _is_typed(lines):
        yield from lines


def _is_typed(lines: list[str]) -> bool:
    words = [word for word in lines[0].split() if not re.match(r"[A-Z_]+=", word)] if lines else []
    return program(words) in SHELL


def commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command in a line of a shell, without variables set before it."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    words.whitespace_split = True
    words.commenters = "#"
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in JOINTS:
            command.append(word)
            continue
        while command and re.match(r"\w+=", command[0]):
            del command[0]
        if command:
            yield command
        command = []


def program(words: list[str]) -> str:
    """Return the name of the program that a command starts."""
    return words[0].rpartition("/")[2] if words else ""


def python_faults(text: str) -> Iterator[str]:
    """Yield what a block of Python that is not run gets wrong about our names and keywords."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return  # output, or another language
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("art_"):
            yield from _import_faults(node)
        name = _public_name(node)
        if name and not hasattr(art, name):
            yield f"art_core has no {name!r}"
        if isinstance(node, ast.Call) and (name := _public_name(node.func)):
            yield from _keyword_faults(name, node)


def _public_name(node: ast.AST) -> str | None:
    is_ours = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return node.attr if is_ours and node.value.id == "art" else None


def _import_faults(node: ast.ImportFrom) -> Iterator[str]:
    try:
        module = __import__(node.module, fromlist=["names"])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == node.module.split(".")[0] == "art_core":
            yield f"no module {node.module!r}"
        return
    for alias in node.names:
        if not hasattr(module, alias.name):
            yield f"{node.module} has no {alias.name!r}"


def _keyword_faults(name: str, call: ast.Call) -> Iterator[str]:
    parameters = inspect.signature(getattr(art, name, lambda **names: None)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for keyword in call.keywords:
        if keyword.arg and keyword.arg not in parameters:
            yield f"art.{name} has no parameter {keyword.arg!r}"
