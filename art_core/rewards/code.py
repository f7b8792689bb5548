"""A reward for code: the share of tests that it passes."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from art_core.base.errors import ConfigError, RewardError
from art_core.rewards.text import Answer, answer_of

_FENCE = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)

Sandbox = Callable[[str, str, float], Awaitable[bool]]
"""Runs (code, test) with a time limit in seconds; returns whether the test passed."""

_PROGRAM = """\
import resource, sys
def limit(name, value):
    kind = getattr(resource, name, None)
    if kind is not None:
        resource.setrlimit(kind, (value, value))
limit("RLIMIT_CPU", {cpu}); limit("RLIMIT_AS", {memory}); limit("RLIMIT_FSIZE", 1 << 24)
limit("RLIMIT_CORE", 0); limit("RLIMIT_NOFILE", 64)
space = {{"__name__": "answer"}}
exec(compile(open("answer.py").read(), "answer.py", "exec"), space)
exec(compile(open("test.py").read(), "test.py", "exec"), space)
print(open("/dev/stdin").read(), flush=True)
"""


async def passes_tests(
    answer: Answer,
    tests: str | Sequence[str],
    *,
    timeout: float = 10.0,
    memory_mb: int = 1024,
    sandbox: Sandbox | None = None,
) -> float:
    """Return the share of tests that Python code passes, in [0, 1].

    The code is the last fenced block of the answer, else all of it. A test is Python that raises
    when the code is wrong (`assert add(1, 2) == 3`); it runs after the code, in its names. Each
    runs in a process of its own, in an empty directory, without the environment's variables, with
    limits on time, memory and file sizes. A program that ends early, by `sys.exit(0)` for example,
    does not pass.

    The process can still read this machine's files and reach its network: for code that you do
    not trust give a `sandbox`, which runs code in a container or at a service. Raises RewardError
    when a test could not be run at all.
    """
    each = [tests] if isinstance(tests, str) else list(tests)
    if not each or timeout <= 0 or memory_mb <= 0:
        raise ConfigError("passes_tests needs a test, and limits above 0")
    code = code_of(answer)
    passed = []
    for test in each:
        if sandbox is not None:
            passed.append(await _in_sandbox(sandbox, code, test, timeout))
        else:
            passed.append(await _passes(code, test, timeout, memory_mb))
    return sum(passed) / len(passed)


def code_of(answer: Answer) -> str:
    """Return the last fenced block of an answer, else all of it."""
    text = answer_of(answer)
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text


async def _in_sandbox(sandbox: Sandbox, code: str, test: str, timeout: float) -> bool:
    try:
        return bool(await sandbox(code, test, timeout))
    except Exception as error:
        raise RewardError(f"the sandbox failed ({type(error).__name__}: {error})") from error


async def _passes(code: str, test: str, timeout: float, memory_mb: int) -> bool:
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="art-code-") as folder:
        program = _PROGRAM.format(cpu=int(timeout) + 1, memory=memory_mb << 20)
        files = {"answer.py": code, "test.py": test, "run.py": program}
        try:
            _write(folder, files)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "run.py",
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise RewardError(f"a test could not be run: {error}") from error
        return await _answers(process, word, timeout)


def _write(folder: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path(folder, name).write_text(text, errors="replace")


async def _answers(process: asyncio.subprocess.Process, word: str, timeout: float) -> bool:
    """Return whether the process ends well and repeats the word that it got."""
    try:
        printed, _ = await asyncio.wait_for(process.communicate(word.encode()), timeout)
    except TimeoutError:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it started
        await process.wait()
    return process.returncode == 0 and printed.decode(errors="replace").endswith(f"{word}\n")
