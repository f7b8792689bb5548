"""The container of `art serve`: what the Dockerfile copies, who runs, and with which command."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest

import art_core as art
from art_core.cli.main import parser

ROOT = Path(__file__).parent.parent
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]


def arguments_of(instruction: str) -> list[str]:
    """Return what follows each instruction of a kind, in order."""
    found = (line.partition(" ") for line in LINES)
    return [rest for word, _, rest in found if word == instruction]


def is_sent(path: str) -> bool:
    """Return whether a file is sent to the build: the last rule that matches it decides."""
    parts = Path(path)
    names = [str(parts), *map(str, parts.parents)][:-1]
    sent = True
    for rule in IGNORED:
        pattern = rule.removeprefix("!").replace("**/", "*")
        # `*` at the start of a pattern stands for any number of folders, none included
        if any(fnmatch.fnmatch(f"/{name}", f"/{pattern}") for name in names):
            sent = rule.startswith("!")
    return sent


def test_the_build_is_sent_all_that_it_copies_and_no_key():
    copied = [words.split()[:-1] for words in arguments_of("COPY") if "--from" not in words]
    sources = [name for names in copied for name in names]
    listed = ["git", "ls-files", "--", *sources]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = [name for name in files.split() if not is_sent(name)]
    assert {name for name in missing if "/tests/" not in name} == set()
    assert not any(name.startswith("art_core/") for name in missing)
    assert all((ROOT / name).exists() for name in sources)


@pytest.mark.parametrize(
    "path",
    [".art/serve/serve.key", "art_core/.env", "plugins/local/key.pem", ".git/config", "docs"],
)
def test_runs_keys_and_history_stay_outside(path: str):
    assert not is_sent(path)


def test_it_runs_without_roots_rights_and_with_a_volume_that_is_its_own():
    (user,), (volume,) = arguments_of("USER"), arguments_of("VOLUME")
    assert user == "10001:10001"
    assert f"--mode=0700 {volume}" in "".join(LINES)
    assert not [line for line in arguments_of("ENV") + arguments_of("ARG") if "KEY" in line]


def test_its_command_is_one_that_art_knows_and_asks_for_a_key():
    (entry,), (command,) = arguments_of("ENTRYPOINT"), arguments_of("CMD")
    program, *words = [*json.loads(entry), *json.loads(command)]
    assert program == "art"
    asked = parser(art.Plugins.discover()).parse_args(words)
    assert (asked.host, asked.backend, asked.no_auth) == ("0.0.0.0", "local", False)
    assert arguments_of("EXPOSE") == [str(asked.port)]
    assert f"127.0.0.1:{asked.port}/health" in arguments_of("HEALTHCHECK")[0]


def test_there_is_a_stage_for_cpus_and_one_for_cuda():
    stages = {words.split()[-1]: words.split()[0] for words in arguments_of("FROM")}
    assert stages["cpu"] == stages["cuda"] == "serve"
    assert list(stages)[-1] == "cpu"
