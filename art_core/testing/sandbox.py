"""The contract of sandboxes. Subclass `SandboxContract`; give `sandbox` and `broken_sandbox`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from art_core.base.errors import ConfigError, InfrastructureError
from art_core.environments.sandbox import Sandbox, SandboxLimits, SandboxResult
from art_core.testing.statements import Contract, Setting

_OUTPUT_KB = 2
_LONG = 3600


class SandboxContract(Contract):
    """The tests of a sandbox: small Python programs run in it.

    Give the method `sandbox()`, which makes one, and `broken_sandbox()`, which makes one whose
    service, daemon or program is missing.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("python", "the command by which Python runs inside"),
        Setting("seconds", "how long a program that hangs is given; more for one that starts late"),
        Setting(
            "has_network",
            "that commands can reach a network, for lack of a way to hold it",
            "that commands reach no network was not tried",
        ),
        Setting(
            "memory_is_unlimited",
            "that there is no limit of memory",
            "the limit of memory was not tried",
        ),
    )
    python: ClassVar[str] = "python3"
    seconds: ClassVar[float] = 2.0
    has_network: ClassVar[bool] = False
    memory_is_unlimited: ClassVar[bool] = False

    def sandbox(self) -> Sandbox:
        """Make a sandbox."""
        raise AssertionError("give sandbox()")

    def broken_sandbox(self) -> Sandbox:
        """Make a sandbox whose service, daemon or program is missing."""
        raise AssertionError("give broken_sandbox()")

    def test_outputs_and_the_exit_status_are_returned(self) -> None:
        """Both outputs apart, and the status as the program gave it."""
        found = self._python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
        assert (found.stdout, found.stderr, found.exit_status) == ("out\n", "err\n", 3)

    def test_it_reads_standard_input(self) -> None:
        """The text arrives whole, and then the input ends."""
        found = self._python("import sys; print(len(sys.stdin.read()))", stdin="x" * 300_000)
        assert found.stdout == "300000\n"

    def test_its_files_are_in_its_directory(self) -> None:
        """By relative path, in directories too, as text or bytes."""
        files: dict[str, str | bytes] = {"a.txt": "one", "deep/b.bin": b"\x00\xff"}
        text = "print(open('a.txt').read(), list(open('deep/b.bin', 'rb').read()))"
        assert self._python(text, files=files).stdout == "one [0, 255]\n"

    def test_asked_files_are_returned(self) -> None:
        """Those that exist, and nothing that a link leads to outside."""
        text = "open('made.txt', 'w').write('7'); import os; os.symlink('/etc/passwd', 'link')"
        found = self._python(text, collect=["made.txt", "none.txt", "link"])
        assert dict(found.files) == {"made.txt": b"7"}

    @pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", ""])  # noqa: S108
    def test_a_path_that_leaves_the_directory_is_refused(self, path: str) -> None:
        """A file's path comes from the model at times."""
        with pytest.raises(ConfigError):
            self._python("pass", files={path: "x"})

    def test_a_run_leaves_nothing_for_the_next(self) -> None:
        """Each command begins in a new directory."""
        made, listed = asyncio.run(
            self._each(["open('left.txt', 'w').close()", "import os; print(os.listdir('.'))"])
        )
        assert made.exit_status == 0
        assert "left.txt" not in listed.stdout

    def test_runs_at_the_same_time_are_apart(self) -> None:
        """All attempts of a gathering run at the same time."""
        text = "import time; open('n', 'w').write('{n}'); time.sleep(0.2); print(open('n').read())"
        found = asyncio.run(self._together([text.format(n=n) for n in range(3)]))
        assert [each.stdout for each in found] == ["0\n", "1\n", "2\n"]

    def test_it_does_not_see_variables_of_this_program(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Keys stay here."""
        monkeypatch.setenv("ART_CONTRACT_SECRET", "x")
        found = self._python("import os; print('ART_CONTRACT_SECRET' in os.environ)")
        assert found.stdout == "False\n"

    def test_a_program_that_takes_too_long_is_killed(self) -> None:
        """What it printed before is kept."""
        found = self._python(f"import time; print('began', flush=True); time.sleep({_LONG})")
        assert found.timed_out
        assert found.stdout == "began\n"

    def test_what_it_started_ends_too(self) -> None:
        """A child that goes on holds up nothing."""
        text = (
            "import subprocess, sys; "
            f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({_LONG})']); "
            "print('done')"
        )
        found = self._python(text)
        assert (found.stdout, found.exit_status) == ("done\n", 0)

    def test_output_without_end_is_cut(self) -> None:
        """Its beginning is kept, up to the limit."""
        found = self._python("print('x' * 5_000_000)", limits={"output_kb": _OUTPUT_KB})
        assert found.stdout == "x" * (_OUTPUT_KB << 10)
        assert found.exit_status == 0

    def test_memory_is_limited(self) -> None:
        """A program that takes more than its share fails."""
        if self.memory_is_unlimited:
            return
        found = self._python("print(len(bytearray(1 << 30)))", limits={"memory_mb": 256})
        assert found.exit_status not in (0, None)
        assert found.stdout == ""

    def test_files_are_limited(self) -> None:
        """A program cannot fill the disk with one file."""
        found = self._python(
            "open('big', 'wb').write(bytes(3 << 20)); print('written')", limits={"file_mb": 1}
        )
        assert "written" not in found.stdout

    def test_it_reaches_no_network(self) -> None:
        """Not this machine's servers either."""
        if self.has_network:
            return
        found = asyncio.run(self._to_a_server())
        assert found.stdout == "no\n"

    def test_output_that_is_no_text_is_returned_as_text(self) -> None:
        """Bytes that are not UTF-8 are replaced."""
        found = self._python("import sys; sys.stdout.buffer.write(b'a\\xffb')")
        assert found.stdout == "a\ufffdb"

    def test_a_command_that_does_not_exist_is_a_result(self) -> None:
        """The model may have named it."""
        found = asyncio.run(self._run(self.sandbox(), ["no-such-command-anywhere"]))
        assert found.exit_status not in (0, None)

    def test_a_sandbox_that_does_not_work_is_an_infrastructure_failure(self) -> None:
        """An attempt whose sandbox was down is not a bad attempt."""
        with pytest.raises(InfrastructureError):
            asyncio.run(self._run(self.broken_sandbox(), [self.python, "-c", "pass"]))

    def test_it_can_be_closed_twice(self) -> None:
        """The end of an attempt and of the program both close it."""
        asyncio.run(self._closed_twice())

    def _python(
        self,
        text: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str = "",
        limits: Mapping[str, Any] | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        given = SandboxLimits(**{"seconds": self.seconds, **(limits or {})})
        options: dict[str, Any] = {"files": files, "stdin": stdin, "collect": collect}
        return asyncio.run(
            self._run(self.sandbox(), [self.python, "-c", text], limits=given, **options)
        )

    async def _run(self, sandbox: Sandbox, command: Sequence[str], **options: Any) -> SandboxResult:
        try:
            return await sandbox.run(command, **options)
        finally:
            await sandbox.close()

    async def _each(self, texts: Iterable[str]) -> list[SandboxResult]:
        sandbox = self.sandbox()
        found = [await sandbox.run([self.python, "-c", text]) for text in texts]
        await sandbox.close()
        return found

    async def _together(self, texts: Iterable[str]) -> list[SandboxResult]:
        sandbox = self.sandbox()
        found = await asyncio.gather(*(sandbox.run([self.python, "-c", t]) for t in texts))
        await sandbox.close()
        return list(found)

    async def _to_a_server(self) -> SandboxResult:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        text = (
            "import socket\n"
            f"try:\n    socket.create_connection(('127.0.0.1', {port}), 5); print('yes')\n"
            "except OSError:\n    print('no')"
        )
        async with server:
            return await self._run(self.sandbox(), [self.python, "-c", text])

    async def _closed_twice(self) -> None:
        sandbox = self.sandbox()
        await sandbox.close()
        await sandbox.close()
