"""A machine for tasks that need no image: a root directory over this system's programs."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import art_core as art
from art_harbor.dockerfile import Instruction, instructions
from art_harbor.machine import Machine
from art_harbor.task import HarborTask

_SYSTEM = "usr bin sbin lib lib32 lib64 libx32 etc opt"
_DEVICES = "null zero full random urandom"
_ENTER = f"""\
cd "$1"
mount --bind . .
cd "$1"
for name in {_SYSTEM}; do
  if [ -L "/$name" ]; then [ -L "$name" ] || ln -s "$(readlink "/$name")" "$name"
  elif [ -d "/$name" ]; then
    mkdir -p "$name"
    mount --rbind "/$name" "$name"
    while read -r _ _ _ _ place _; do
      case "$place" in "$1/$name"|"$1/$name"/*) mount -o remount,bind,ro "$place";; esac
    done < /proc/self/mountinfo
  fi
done
mkdir -p dev proc tmp root
for name in {_DEVICES}; do : >> "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
ln -sfn /proc/self/fd dev/fd
ln -sfn fd/0 dev/stdin
ln -sfn fd/1 dev/stdout
ln -sfn fd/2 dev/stderr
mount -t proc proc proc
: > ../entered
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Host(Machine):
    """A directory that commands see as `/`, with the programs of this system, which they can't
    change, and without a network. All that a command started ends with it.

    The `environment/Dockerfile` of the task is followed where it needs no image: WORKDIR, ENV,
    COPY, and RUN without a network. ConfigError if Linux permits no namespaces here.
    """

    def __init__(self, task: HarborTask, context: Path, env: Mapping[str, str]) -> None:
        self.task, self.context = task, context
        self._box = art.sandbox("subprocess", strict=True)
        self._env = dict(env)
        self._workdir = PurePosixPath("/")
        if {task.agent_user, task.verifier_user} - {"", "root", "0"}:
            raise art.ConfigError(
                f"the Harbor task {task.name} names a user, and without an image there is only root"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="art-harbor-")).resolve()
        self._root = self._folder / "root"
        self._root.mkdir()

    async def start(self) -> None:
        """Follow the task's Dockerfile."""
        for each in instructions(self.context / "Dockerfile"):
            await self._follow(each)
        if self.task.workdir:
            self._move(self.task.workdir)

    async def run(
        self,
        command: str,
        *,
        seconds: float,
        env: Mapping[str, str] | None = None,
        user: str = "",  # noqa: ARG002
    ) -> art.SandboxResult:
        """Run a command as the root of the directory; other users do not exist."""
        entered = self._folder / "entered"
        entered.unlink(missing_ok=True)
        variables = {"PATH": _PATH, "HOME": "/root", "TMPDIR": "/tmp", **self._env, **(env or {})}  # noqa: S108
        inner = [f"{name}={value}" for name, value in variables.items()]
        start = f'cd {shlex.quote(str(self._workdir))} && exec bash -c "$1"'
        begin = ["env", "-i", *inner, "bash", "-c", start, "bash", command]
        outer = 'sh -e -c "$1" sh "$2" && shift 1 && exec chroot "$@"'
        limits = art.SandboxLimits(
            seconds=seconds,
            memory_mb=self.task.memory_mb or 4096,
            file_mb=256,
            open_files=1024,
        )
        wrapped = ["unshare", "--mount", "--", "sh", "-c", outer, "sh", _ENTER, str(self._root)]
        found = await self._box.run([*wrapped, *begin], limits=limits)
        if not entered.exists() and not found.timed_out:
            reason = found.stderr.strip()[-300:]
            raise art.InfrastructureError(f"a directory can't be made the root here: {reason}")
        return found

    async def put(self, place: str, packed: bytes) -> None:
        """Unpack an archive into a directory of the machine."""
        target = self._inside(place)
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            await asyncio.to_thread(archive.extractall, target, filter="tar")

    async def get(self, path: str) -> bytes | None:
        """Return a file or a directory of the machine as an archive."""
        found = self._inside(path)
        if not found.exists():
            return None
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            await asyncio.to_thread(archive.add, found, found.name)
        return buffer.getvalue()

    async def close(self) -> None:
        """Remove the directory."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _follow(self, each: Instruction) -> None:
        if each.name == "WORKDIR":
            self._move(each.text)
        elif each.name == "ENV":
            self._env = {**each.variables, **self._env}
        elif each.name == "RUN":
            await self._make(each.text)
        else:
            self._copy(each.words)

    async def _make(self, command: str) -> None:
        found = await self.run(command, seconds=self.task.build_seconds)
        if found.exit_status != 0:
            raise art.InfrastructureError(
                f"RUN {command!r:.80} of the task {self.task.name} fails without its image: "
                f"{found.stderr.strip()[-200:]}",
                'Take sandbox="docker" or "podman".',
            )

    def _copy(self, words: list[str]) -> None:
        *sources, place = words
        target = self._inside(str(self._workdir / place))
        into = len(sources) > 1 or place.endswith("/") or place in (".", "./")
        for source in sources:
            for path in sorted(self.context.glob(source)) if source != "." else [None]:
                if path is None or path.is_dir():
                    shutil.copytree(path or self.context, target, dirs_exist_ok=True)
                    continue
                file = target / path.name if into or target.is_dir() else target
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, file)

    def _move(self, place: str) -> None:
        self._workdir /= re.sub(r"^['\"]|['\"]$", "", place)
        self._inside(str(self._workdir)).mkdir(parents=True, exist_ok=True)

    def _inside(self, path: str) -> Path:
        """Return the place of a path in the root directory. Links do not lead out of it."""
        inner = PurePosixPath(path)
        found = self._root.joinpath(*inner.parts[1:] if inner.is_absolute() else inner.parts)
        if not found.resolve().is_relative_to(self._root.resolve()):
            raise art.InfrastructureError(f"{path} of the task {self.task.name} leads elsewhere")
        return found
