"""Check the English of docstrings, comments, messages and pages; `make lint` runs it.

The phrases are in `words.toml`, each with what to write instead. `python docs/words.py PATH...`
checks only those files.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TEXT_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
STATEMENT_ENDS = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
GENERATED = re.compile(r"<!-- (?:generated|contract|written by).*?<!-- end", re.DOTALL)
F_STRING_PART = re.compile(r"{\w[^{}\n]*}")
UNREAD = ("CHANGELOG.md", "docs/words.toml", "docs/words.py")


def tracked() -> list[Path]:
    """Return the Python files and pages that git tracks, with new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in names.split("\n") if name and (ROOT / name).exists()]


@functools.cache
def texts(path: Path) -> list[tuple[int, str]]:
    """Return each text written for readers, with its line: a whole page; comments and strings of
    code, without the expressions in f-strings. In tests, strings other than docstrings are data.
    """
    source = path.read_text()
    if path.suffix == ".md":
        # Generated text is checked at its source. Its line ends stay, for the numbers of the rest.
        return [(1, GENERATED.sub(lambda part: "\n" * part[0].count("\n"), source))]
    found = []
    is_test = "tests" in path.parts
    begins_statement = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_data = is_test and token.type != tokenize.COMMENT and not begins_statement
        if token.type in TEXT_TOKENS and not is_data:
            found.append((token.start[0], F_STRING_PART.sub("{}", token.string)))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            begins_statement = token.type in STATEMENT_ENDS
    return found


def places(path: Path, phrase: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that have the phrase, each with the words found."""
    unless = re.compile(phrase.get("unless", "(?!)"), re.IGNORECASE)
    for line, text in texts(path):
        # A phrase may run over the end of a line, not over that of a paragraph.
        flat = text.replace("\n\n", " \0").replace("\n", " ")
        spared = [range(*found.span()) for found in unless.finditer(flat)]
        for found in re.finditer(phrase["find"].replace(" ", r"\s+"), flat, re.IGNORECASE):
            if not any(found.start() in span for span in spared):
                yield line + text.count("\n", 0, found.start()), " ".join(found[0].split())


def phrase_faults(paths: list[Path], phrase: dict[str, Any]) -> list[str]:
    """Return the places of a phrase."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {words!r}; write: {phrase['instead']}"
        for path in paths
        for line, words in places(path, phrase)
    ]


def module_faults(paths: list[Path], rules: dict[str, Any]) -> list[str]:
    """Return the modules that are too long, and those whose docstring begins with a question word
    if there are too many.
    """
    modules = {path: path.read_text() for path in paths if path.suffix == ".py"}
    faults = [
        f"{path.relative_to(ROOT)}: {lines} lines; at most {rules['max_lines']}"
        for path, text in modules.items()
        if (lines := text.count("\n")) > rules["max_lines"] and "tests" not in path.parts
    ]
    heads = {path: ast.get_docstring(ast.parse(text)) for path, text in modules.items()}
    described = {path: head.split()[0] for path, head in heads.items() if head}
    asking = [path for path, word in described.items() if word in rules["question_words"]]
    if len(asking) > rules["max_question_share"] * len(described):
        faults += [f"{p.relative_to(ROOT)}:1: begins with {described[p]!r}" for p in asking]
    return faults


def main(arguments: list[str]) -> str | None:
    """Print the faults and return a summary, or None without any."""
    rules = tomllib.loads((DOCS / "words.toml").read_text())
    paths = [Path(name).resolve() for name in arguments] or tracked()
    paths = [path for path in paths if str(path.relative_to(ROOT)) not in UNREAD]
    faults = module_faults(paths, rules["modules"])
    for phrase in rules["phrases"]:
        faults += phrase_faults(paths, phrase)
    print("\n".join(faults), end="\n" if faults else "")
    return f"{len(faults)} places to write in plain English" if faults else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
