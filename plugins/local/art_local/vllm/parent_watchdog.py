"""Run a server as a child process; end it, with its children, when the parent dies or asks for it.

    python -S -E parent_watchdog.py PARENT_PID LOG_FILE COMMAND...

A script that uses only the standard library. The server gets its own process group, whose id is
printed as the only line on standard output. The exit status is the server's. On Linux the server
also dies when the watchdog is killed. The log is kept below `LOG_BYTES`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

POLL_S = 0.1
TERMINATE_S = 5.0
PR_SET_PDEATHSIG = 1
LOG_BYTES = 64 << 20
KEPT_BYTES = 1 << 20
"""The end of a log that stays when it is shortened."""


def main(parent: int, log_file: str, command: list[str]) -> int:
    """Run the command until it ends, the parent is gone, or SIGTERM comes."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log_file, "ab") as log:  # noqa: PTH123 - pathlib would double the start's time
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_die_with_watchdog if sys.platform == "linux" else None,  # noqa: PLW1509
        )
    print(server.pid, flush=True)  # noqa: T201
    while server.poll() is None and not signals and os.getppid() == parent:
        time.sleep(POLL_S)
        shorten(log_file)
    if server.poll() is None:
        server.terminate()
        _wait(server, TERMINATE_S)
    with contextlib.suppress(ProcessLookupError):
        # the server's own children end with it, however it ended
        os.killpg(server.pid, signal.SIGKILL)
    return abs(server.wait())


def shorten(log_file: str) -> None:
    """Keep only the end of a log that is longer than `LOG_BYTES`; the server appends to it."""
    with contextlib.suppress(OSError):
        if os.path.getsize(log_file) <= LOG_BYTES:  # noqa: PTH202
            return
        with open(log_file, "rb+") as log:  # noqa: PTH123
            log.seek(-KEPT_BYTES, os.SEEK_END)
            end = log.read()
            log.truncate(0)
        with open(log_file, "ab") as log:  # noqa: PTH123
            log.write(end)


def _die_with_watchdog() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(server: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
