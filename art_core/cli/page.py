"""The page of runs, `art board`, in a process of its own while a command works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from art_core.log.rundir import runs_path


@contextmanager
def page_beside(directory: Path | None) -> Iterator[str]:
    """Serve the page of a directory's runs (default: $ART_DIR, else .art) beside a block.

    The value is the page's address, "" if it could not start; its error is on standard error. The
    page ends with the block, and with this process, however that ends. The directory is made, for
    the first run in it.
    """
    runs_path(directory).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "art_core", "board", "--until-eof"]
    if directory is not None:
        command.append(str(directory))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().partition(" ")[0].strip()
        finally:
            process.stdin.close()
