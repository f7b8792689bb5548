"""Runs a server as its child and ends it, with all its children, when the parent dies or says so.

    python -S -E guard.py PARENT_PID LOG_FILE COMMAND...

Standard library alone; it is started as a script. The server gets a process group of its own, whose
id is printed as the only line on standard output. The exit status is the server's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

POLL_S = 0.1
TERMINATE_S = 5.0


def main(parent: int, log_file: str, command: list[str]) -> int:
    """Run the command until it ends, the parent is gone, or SIGTERM comes."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log_file, "ab") as log:  # noqa: PTH123 - pathlib would double the start's time
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    print(server.pid, flush=True)  # noqa: T201
    while server.poll() is None and not told and os.getppid() == parent:
        time.sleep(POLL_S)
    if server.poll() is None:
        server.terminate()
        _wait(server, TERMINATE_S)
    with contextlib.suppress(ProcessLookupError):
        # what the server started goes with it, however it ended
        os.killpg(server.pid, signal.SIGKILL)
    return abs(server.wait())


def _wait(server: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
