"""Each distribution contains types and the licence, and versions that fit each other."""

from __future__ import annotations

import datetime as dt
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import art_core as art

ROOT = Path(__file__).parent.parent
CORE, CHANGELOG = ROOT / "art_core" / "__init__.py", ROOT / "CHANGELOG.md"
RELEASE = runpy.run_path(str(ROOT / "locks" / "release.py"))
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


def test_all_distributions_have_the_cores_version_and_fit_each_other():
    assert [fault for fault in RELEASE["faults"](ROOT) if "[Unreleased]" not in fault] == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files of ours that have a version, prepared for a release."""
    for file in (*(folder / "pyproject.toml" for folder in DISTRIBUTIONS), CORE, CHANGELOG):
        copied = tmp_path / file.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(file.read_text())
    RELEASE["prepare"](tmp_path, Version("7.1.0"), dt.date(2030, 1, 31))
    return tmp_path


def test_a_prepared_version_is_in_all_distributions_and_in_the_changelog(tree: Path):
    assert list(RELEASE["faults"](tree)) == []
    project_of_board = project(tree / "plugins" / "board")
    assert project_of_board["version"] == "7.1.0"
    assert project_of_board["dependencies"] == ["art-core[endpoint]>=7.1.0,<8"]
    changelog = (tree / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [7.1.0] - 2030-01-31\n" in changelog
    assert len(changelog) > len(CHANGELOG.read_text())


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("plugins/mcp/pyproject.toml", 'version = "7.1.0"', 'version = "7.0.9"', "version 7.0.9"),
        ("pyproject.toml", "art-board>=7.1.0,<8", "art-board>=7.1.0", "needs art-board>=7.1.0,<8"),
        ("compat/pyproject.toml", ">=7.1.0,<8", "==7.0.0", "needs art-core>=7.1.0,<8"),
        ("art_core/__init__.py", '"7.1.0"', '"7.0.0"', "__version__ is not 7.1.0"),
        ("CHANGELOG.md", "[7.1.0] - 2030-01-31", "[7.1.0]", "no section [7.1.0] with its date"),
        ("CHANGELOG.md", "## [Unreleased]\n", "", "no section [Unreleased]"),
        ("CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n- New.\n", "has entries"),
    ],
)
def test_a_release_that_does_not_fit_is_refused(
    tree: Path, file: str, old: str, new: str, fault: str
):
    text = (tree / file).read_text()
    assert old in text
    (tree / file).write_text(text.replace(old, new, 1))
    (found,) = RELEASE["faults"](tree)
    assert found.startswith(f"{file}: ")
    assert fault in found


def test_an_older_version_cannot_be_prepared(tree: Path):
    with pytest.raises(SystemExit, match=r"7\.0\.9 is not newer than 7\.1\.0"):
        RELEASE["prepare"](tree, Version("7.0.9"), dt.date(2030, 1, 31))


def test_before_one_a_minor_version_may_change_what_others_import():
    assert RELEASE["fitting"](Version("0.3.2")) == ">=0.3.2,<0.4"
    assert RELEASE["fitting"](Version("1.3.2")) == ">=1.3.2,<2"


def test_built_files_that_are_missing_or_of_another_version_are_found(tree: Path):
    built = tree / "dist"
    built.mkdir()
    for folder in DISTRIBUTIONS:
        stem = project(folder)["name"].replace("-", "_") + "-7.1.0"
        (built / f"{stem}-py3-none-any.whl").touch()
        (built / f"{stem}.tar.gz").touch()
    assert list(RELEASE["artefact_faults"](tree, built)) == []
    (built / "art_mcp-7.1.0.tar.gz").rename(built / "art_mcp-7.0.0.tar.gz")
    assert list(RELEASE["artefact_faults"](tree, built)) == [
        "dist: art_mcp-7.1.0.tar.gz is missing",
        "dist: art_mcp-7.0.0.tar.gz is not of this release",
    ]


def test_a_tag_of_another_version_ends_the_check():
    command = [sys.executable, str(ROOT / "locks" / "release.py"), "check", "--tag", "v0.0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"the tag is v0.0.1, and the version {art.__version__}" in done.stderr


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())


def test_the_workflow_publishes_what_make_release_checked_and_may_do_nothing_else():
    jobs = workflow("release.yml")["jobs"]
    assert {"run": 'make release TAG="$TAG"'} in jobs["build"]["steps"]
    assert "permissions" not in jobs["build"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "password" not in str(jobs)


def test_each_change_runs_the_whole_of_ci():
    assert {"run": "bash .ci/run"} in workflow("ci.yml")["jobs"]["test"]["steps"]
