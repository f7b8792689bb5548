from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import attrs
import orjson
import pytest

import art_core as art
from art_core.cli.main import main

WHEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@attrs.define
class Shelf:
    """A directory of runs that a test fills."""

    path: Path

    def run(self, name: str, *rows: Mapping[str, float], status: str | None = "finished") -> Path:
        """Write a run whose rows are train rows of steps 1, 2, 3..."""
        directory = self.path / "demo" / "models" / name
        directory.mkdir(parents=True)
        lines = [
            art.MetricsRow(
                seq=n, attempt=1, step=n, split="train", recorded_at=WHEN, metrics=dict(row)
            ).to_line()
            for n, row in enumerate(rows, 1)
        ]
        (directory / "history.jsonl").write_bytes(b"".join(lines))
        if status:
            (directory / "status.json").write_bytes(orjson.dumps({"status": status}))
        return directory


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("ART_DIR", str(tmp_path / ".art"))
    return Shelf(tmp_path / ".art")


@pytest.fixture
def art_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run `art ...` with the built-in plugin and those given, on a terminal of 200 columns; return
    what it printed.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, plugins: Mapping[str, object] | None = None) -> str:
        assert main(arguments, host(plugins or {})) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def art_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `art ...`, which must fail with one line on standard error; return the line."""

    def run(*arguments: str, plugins: Mapping[str, object] | None = None) -> str:
        assert main(arguments, host(plugins or {})) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def art_status(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `art ...`; return its exit status, what it printed, and its errors."""

    def run(*arguments: str, plugins: Mapping[str, object] | None = None) -> tuple[int, str, str]:
        status = main(arguments, host(plugins or {}))
        return status, *capsys.readouterr()

    return run


def host(plugins: Mapping[str, object]) -> art.Plugins:
    from art_core.hooks.host import Core

    found = art.Plugins()
    found.register(Core(), "core")
    for name, plugin in plugins.items():
        found.register(plugin, name)
    return found
