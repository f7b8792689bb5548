"""Check and prepare a release of all distributions; `make release` runs this script.

`check` finds versions, requirements and a changelog that do not fit each other, `prepare VERSION`
writes a new version into all of them, and `artefacts` looks at what was built in `dist/`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parent.parent
CORE = "art_core/__init__.py"
CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## [Unreleased]\n"
TOOLS = Path(__file__).parent / "release.txt"
OWN_REQUIREMENT = re.compile(r'"(art-[a-z]+(?:\[[a-z,]+\])?)[<>=][^"]*"')


def projects(root: Path) -> dict[str, Path]:
    """Return the `pyproject.toml` of each distribution that is released, by its name."""
    files = [root / "pyproject.toml", root / "compat" / "pyproject.toml"]
    files += sorted(root.glob("plugins/*/pyproject.toml"))
    return {tomllib.loads(file.read_text())["project"]["name"]: file for file in files}


def fitting(version: Version) -> str:
    """Return the versions of our other distributions that one of this version works with.

    A distribution imports what its own release of the others has, and the next minor version (from
    1.0 on, the next major one) may change it.
    """
    below = f"0.{version.minor + 1}" if version.major == 0 else f"{version.major + 1}"
    return f">={version},<{below}"


def faults(root: Path) -> Iterator[str]:
    """Yield what keeps the distributions in a directory from being released."""
    files = projects(root)
    version = Version(tomllib.loads(files["art-core"].read_text())["project"]["version"])
    if f'\n__version__ = "{version}"\n' not in (root / CORE).read_text():
        yield f"{CORE}: __version__ is not {version}"
    for file in files.values():
        where = file.relative_to(root)
        project = tomllib.loads(file.read_text())["project"]
        if project["version"] != str(version):
            yield f"{where}: version {project['version']}, and art-core's is {version}"
        extras = project.get("optional-dependencies", {}).values()
        for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
            needed = Requirement(text)
            if (
                needed.name in files
                and needed.specifier != Requirement(f"x{fitting(version)}").specifier
            ):
                yield f"{where}: {text}, and the release needs {needed.name}{fitting(version)}"
    yield from changelog_faults((root / CHANGELOG).read_text(), version)


def changelog_faults(text: str, version: Version) -> Iterator[str]:
    """Yield what is missing in the changelog of a release."""
    _, unreleased, after = text.partition(UNRELEASED)
    if not unreleased:
        yield f"{CHANGELOG}: no section [Unreleased]"
    if not re.search(
        rf"^## \[{re.escape(str(version))}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE
    ):
        yield f"{CHANGELOG}: no section [{version}] with its date"
    if after.partition("\n## [")[0].strip():
        yield f"{CHANGELOG}: [Unreleased] has entries; `make release VERSION=...` gives them one"


def prepare(root: Path, version: Version, today: dt.date) -> None:
    """Write a version into all distributions, and make it of the changelog's [Unreleased]."""
    files = projects(root)
    before = Version(tomllib.loads(files["art-core"].read_text())["project"]["version"])
    if version <= before:
        sys.exit(f"{version} is not newer than {before}")
    for file in files.values():
        text = re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', file.read_text(), count=1)
        file.write_text(OWN_REQUIREMENT.sub(rf'"\1{fitting(version)}"', text))
    core, changelog = root / CORE, root / CHANGELOG
    replaced = f'__version__ = "{version}"'
    core.write_text(re.sub(r'(?m)^__version__ = ".*"$', replaced, core.read_text()))
    heading = f"{UNRELEASED}\n## [{version}] - {today}\n"
    changelog.write_text(changelog.read_text().replace(UNRELEASED, heading, 1))


def artefact_faults(root: Path, built: Path) -> Iterator[str]:
    """Yield the wheels and source distributions that are missing or do not belong to a release."""
    expected = set()
    for name, file in projects(root).items():
        version = tomllib.loads(file.read_text())["project"]["version"]
        stem = f"{name.replace('-', '_')}-{version}"
        expected |= {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz"}
    found = {path.name for path in built.iterdir() if path.name != ".gitignore"}
    yield from (f"{built.name}: {name} is missing" for name in sorted(expected - found))
    yield from (f"{built.name}: {name} is not of this release" for name in sorted(found - expected))


def try_artefacts(built: Path) -> None:
    """Check all descriptions as PyPI does, and run `art --version` from the wheel."""
    uv = [str(Path(sys.executable).parent / "uv"), "run", "--quiet", "--no-project", "--isolated"]
    packages = [str(path) for path in sorted(built.iterdir()) if path.suffix in (".whl", ".gz")]
    twine = ("--with-requirements", str(TOOLS), "twine", "check", "--strict", *packages)
    subprocess.run([*uv, *twine], check=True)
    (core,) = (
        path
        for path in packages
        if Path(path).name.startswith("art_core-") and path.endswith(".whl")
    )
    env = os.environ | {"UV_CONSTRAINT": str(TOOLS.parent / "all.txt")}
    with tempfile.TemporaryDirectory() as elsewhere:
        subprocess.run(
            [*uv, "--with", core, "art", "--version"], check=True, env=env, cwd=elsewhere
        )


def main(arguments: list[str]) -> str | None:
    """Do what is asked and return the faults, or None without any."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check")
    check.add_argument("--tag", help="of the commit that is released, such as v1.2.0")
    commands.add_parser("prepare").add_argument("version", type=_version)
    commands.add_parser("artefacts").add_argument(
        "built", type=Path, nargs="?", default=ROOT / "dist"
    )
    asked = parser.parse_args(arguments)
    if asked.command == "prepare":
        prepare(ROOT, asked.version, dt.datetime.now(dt.UTC).date())
    found = list(faults(ROOT))
    if asked.command == "artefacts":
        found += artefact_faults(ROOT, asked.built)
        if not found:
            try_artefacts(asked.built)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if asked.command == "check" and asked.tag not in (None, f"v{version}"):
        found.append(f"the tag is {asked.tag}, and the version {version}")
    if not found:
        print(f"{version}: ready, {len(projects(ROOT))} distributions")
    return "\n".join(found) or None


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise argparse.ArgumentTypeError(f"{text!r} is not a version, such as 1.2.0") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
