"""Deletion of a run's directory, after checks that it is a run and that no process uses it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from art_core.base.errors import ConfigError
from art_core.base.files import take_lock
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import checkpoint_folder, history_file


@attrs.frozen
class Holdings:
    """The contents of a run's directory: bytes that its deletion frees, and checkpoints."""

    bytes: int
    checkpoints: int


def deletable_run(requested: str, base_path: Path) -> LoggedRun:
    """Return the run to delete; ConfigError if its directory is a link or not that of a run.

    A run found by name must lie below `base_path`, with links resolved. A run given as a
    directory may lie elsewhere.
    """
    run = find_run(requested, base_path)
    path = run.path.resolve()
    # `find_run` resolves a directory and keeps the path that a name stands for.
    by_name = run.path != path or not os.path.lexists(history_file(Path(requested)))
    if run.path.is_symlink() or (not by_name and Path(requested).is_symlink()):
        raise ConfigError(
            f"{requested} is a symbolic link to {path}", "Give that directory, or remove the link."
        )
    if path.parent.name != "models":
        raise ConfigError(
            f"{path} is no run's directory, such as DIR/<project>/models/<name>",
            "Remove it by hand.",
        )
    if by_name and not path.is_relative_to(base_path.resolve()):
        raise ConfigError(
            f"{run.name} lies outside of {base_path}, in {path}", "Give that directory."
        )
    return run


def holdings(path: Path) -> Holdings:
    """Return a directory's contents. A file with another hard link elsewhere frees nothing."""
    links: dict[tuple[int, int], int] = {}
    freed = 0
    for folder, _, names in os.walk(path):
        for name in names:
            found = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            inode = found.st_dev, found.st_ino
            links[inode] = links.get(inode, 0) + 1
            freed += found.st_size if links[inode] == found.st_nlink else 0
    checkpoints = [entry for entry in _entries(checkpoint_folder(path)) if entry.is_dir()]
    return Holdings(freed, len(checkpoints))


def delete_run(run: LoggedRun) -> None:
    """Delete a run's directory; ConfigError while a process trains it or delivers its rows.

    The log is deleted last, so that an interrupted deletion leaves a run that can be deleted
    again. Symbolic links are removed and not followed.
    """
    with _held(run):
        log = run.history
        for entry in _entries(run.path):
            if entry != log:
                _remove(entry)
        _remove(log)
        run.path.rmdir()


@contextmanager
def _held(run: LoggedRun) -> Iterator[None]:
    """Lock the run's log and the cursors of its sinks; ConfigError if a process holds one."""
    locks = [run.history, *sorted(run.path.glob("**/*.lock"))]
    with ExitStack() as locks_held:
        for path in locks:
            with suppress(FileNotFoundError, IsADirectoryError):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                locks_held.callback(os.close, fd)
                if stat.S_ISREG(os.fstat(fd).st_mode) and not take_lock(fd):
                    raise ConfigError(
                        f"{run.name} is in use: a process holds {path.name}",
                        "Stop the trainer or `art sync` first.",
                    )
        yield


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
