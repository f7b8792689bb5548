"""A process that compares mathematics: an expression like 9^{9^{9^9}} never ends, and no time limit
inside this process can stop it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time

from art_core.base.errors import RewardError

_START_S = 120.0
_MEMORY = 4 << 30
_PROGRAM = """\
import json, resource, sys
limit = {memory}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
out, sys.stdout = sys.stdout, sys.stderr
def reply(value):
    out.write(json.dumps(value) + "\\n")
    out.flush()
from math_verify import parse, verify
reply(True)
for line in sys.stdin:
    expected, answer = json.loads(line)
    gold = parse(expected, parsing_timeout=None)
    reply(bool(gold))
    if gold:
        given = parse(answer, parsing_timeout=None)
        reply(bool(verify(gold, given, timeout_seconds=None)))
"""


class _NoReplyError(Exception):
    """The process was late or has ended."""


class _Process:
    """A running process; one comparison at a time."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(memory=_MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._buffer = b""
        try:
            self.reply(_START_S)
        except _NoReplyError as error:
            self.close()
            raise RewardError("the process that compares mathematics did not start") from error

    @property
    def ended(self) -> bool:
        """Return whether it has ended by itself."""
        return self._popen.poll() is not None

    def send(self, expected: str, answer: str) -> None:
        """Ask for a comparison."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps([expected, answer]).encode() + b"\n")
        except OSError as error:
            raise _NoReplyError from error

    def reply(self, timeout: float) -> bool:
        """Return the next reply."""
        assert self._popen.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._popen.stdout], [], [], left)
            part = os.read(self._popen.stdout.fileno(), 1024) if ready else b""
            if not part:
                raise _NoReplyError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return bool(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.communicate()


class Comparer:
    """Compares expressions in a process that is started when it is needed, and again after it was
    ended because it took too long.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin without a process: one that there is belongs to the program that was forked."""
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def equal(self, expected: str, answer: str, timeout: float) -> bool:
        """Return whether an answer is equal to the expected expression; False for an answer that
        takes longer than `timeout` seconds.

        Raises RewardError for an expected text that is not mathematics or takes longer.
        """
        with self._lock:
            if self._process is not None and self._process.ended:
                self._end()
            process = self._process = self._process or _Process()
            known, shown = False, expected.strip("$")
            try:
                process.send(expected, answer)
                if not process.reply(timeout):
                    raise RewardError(f"the expected answer is not mathematics: {shown!r:.80}")
                known = True
                return process.reply(timeout)
            except _NoReplyError as error:
                self._end()
                if known:
                    return False
                raise RewardError(
                    f"the expected answer {shown!r:.80} was not read within {timeout:g} s"
                ) from error

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


comparer = Comparer()
atexit.register(comparer.close)
os.register_at_fork(after_in_child=comparer.forget)
