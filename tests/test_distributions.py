"""Each distribution contains types and the licence, and versions that fit each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import art_core as art

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = [
    ROOT,
    ROOT / "compat",
    *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")),
]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_a_distribution_has_its_types_and_the_licence(folder: Path):
    name = project(folder)["name"]
    package = {"art-compat": "art"}.get(name, name.replace("-", "_"))
    assert (folder / package / "py.typed").is_file()
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_a_distribution_is_of_the_cores_version_and_asks_for_it(folder: Path):
    found = project(folder)
    assert found["version"] == art.__version__
    ours = [needed for needed in found["dependencies"] if needed.startswith("art-")]
    assert all(re.search(r"==(.+)$", needed)[1] == art.__version__ for needed in ours)
