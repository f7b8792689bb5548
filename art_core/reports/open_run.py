"""`art.open_run`: a run to read, found as the `art` commands find it."""

from __future__ import annotations

from pathlib import Path

from art_core.hooks.host import installed_plugins
from art_core.log.reader import LoggedRun, find_run
from art_core.log.rundir import runs_path


def open_run(run: str | Path, base_path: str | Path | None = None) -> LoggedRun:
    """Return a run to read, given its directory, `project/name`, or a name that only one run has.

    Names are looked up below `base_path`, else `ART_DIR`, else `.art`. The run may be live, of
    another process, moved to an archive, or written by ART. ConfigError names the runs if none
    fits.
    """
    return find_run(run, runs_path(base_path), installed_plugins().taxonomy())
