"""Fixtures of all tests of the core."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from art_core.costs import pending, track
from art_core.data.account import UNOWNED

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test without the caller's `ART_...`: CI sets ART_STRICT, you may set ART_DIR."""
    for name in [name for name in os.environ if name.startswith("ART_")]:
        if name != "ART_ENGINES":  # see the conftest of all tests
            monkeypatch.delenv(name)


@pytest.fixture
def threads_in_turn() -> Iterator[None]:
    """Let threads take turns after a few instructions: a race shows itself within fewer of them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture
def run_its_tests(tmp_path: Path) -> Callable[[Path, str], str]:
    """Run tests of a distribution's folder as if it were installed; return pytest's output."""

    def run(folder: Path, tests: str) -> str:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        name, version = project["name"], project["version"]
        info = tmp_path / "installed" / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        plugins = project.get("entry-points", {}).get("art_core", {})
        entries = [f"{name} = {module}" for name, module in plugins.items()]
        (info / "entry_points.txt").write_text("\n".join(["[art_core]", *entries]))
        path = os.pathsep.join([str(folder), str(info.parent), str(ROOT)])
        without = ("-p", "no:cacheprovider", "-p", "no:langsmith_plugin")
        command = [sys.executable, "-m", "pytest", "-q", *without, tests]
        environment = os.environ | {"PYTHONPATH": path}
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run


@pytest.fixture
def no_open_models() -> Iterator[None]:
    """Begin without open models and without paid calls that belong to none."""
    others = pending.open_builders()
    pending.default_builders.clear()
    pending._warn_once.cache_clear()
    UNOWNED.take()
    track._unchecked.clear()
    yield
    UNOWNED.take()
    pending.default_builders.clear()
    pending.default_builders.update(others)
