"""Install packages with pip: print the size of the download first, explain a missing build.

This module uses the standard library only: `make` runs it before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

HEAD_TIMEOUT_S = 10.0
SHOWN = 4
"""The largest packages, which are named one by one."""
LARGE_BYTES = 10**9
WHERE = "pytorch.org/get-started shows its address for 'Pip' and 'CPU'"


class Package(NamedTuple):
    """A package that pip would download; `size` in bytes, None if the index does not have it."""

    name: str
    version: str
    size: int | None


def planned_downloads(pip: Sequence[str], arguments: Sequence[str]) -> list[Package]:
    """Return what `pip install` would download for these arguments; nothing if all is installed, or
    if pip cannot resolve them: the installation itself then reports why.
    """
    command = (*pip, "install", "--dry-run", "--quiet", "--report", "-", *arguments)
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return []
    items = json.loads(found.stdout[found.stdout.index("{") :])["install"]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(size_of, (item["download_info"]["url"] for item in items)))
    return [
        Package(item["metadata"]["name"], item["metadata"]["version"], size)
        for item, size in zip(items, sizes, strict=True)
    ]


def size_of(url: str) -> int | None:
    """Return the bytes to download from a URL: 0 for a file of this machine."""
    if not url.startswith(("http://", "https://")):
        return 0
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http only, see above
        with urllib.request.urlopen(request, timeout=HEAD_TIMEOUT_S) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length")
    except (OSError, ValueError):
        return None
    return int(length) if length and length.isdigit() else None


def size_line(packages: Sequence[Package]) -> str:
    """Return one line with the whole size and the largest packages; "" if there are none."""
    if not packages:
        return ""
    known = [p for p in packages if p.size is not None]
    total = sum(p.size or 0 for p in known)
    largest = sorted(known, key=lambda p: -(p.size or 0))[:SHOWN]
    named = ", ".join(
        f"{p.name} {p.version} {megabytes(p.size or 0)}" for p in largest if p.size and p.size > 1e6
    )
    unknown = len(packages) - len(known)
    count = "1 package" if len(packages) == 1 else f"{len(packages)} packages"
    parts = [f"{megabytes(total)} to download in {count}"]
    parts += [f"the size of {unknown} is not known"] if unknown else []
    return "; ".join(parts) + (f" ({named})" if named else "")


def megabytes(size: int) -> str:
    """Return a size as people read it: 3.4 GB, 21 MB, 8 kB."""
    if size >= LARGE_BYTES:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def has_cuda(packages: Iterable[Package]) -> bool:
    """Return whether the packages include CUDA's libraries."""
    return any(p.name.startswith("nvidia-") for p in packages)


def missing_build(output: Iterable[str]) -> str | None:
    """Return the requirement for which pip found no package, by its output, else None."""
    text = "\n".join(output)
    found = re.search(r"No matching distribution found for ([^\s;]+)", text)
    if found:
        return found[1]
    # an installed torch of another build: pip reports that as a conflict of versions
    local = re.search(r"depends on (torch==[^\s;]*\+cpu)", text)
    return local[1] if local else None


def explanation(requirement: str, remedy: str) -> tuple[str, str]:
    """Return problem and remedy for a requirement that no package fits; `remedy` is the command
    that names another index.
    """
    machine = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    problem = f"no package index in use has {requirement} for {machine}"
    if requirement.startswith("torch"):
        return problem, (
            "Builds of torch without CUDA are on an index of PyTorch's own, not on PyPI: "
            f"{remedy} ({WHERE})."
        )
    return problem, f"Use a Python that it supports, or name an index that has it: {remedy}."


def main(arguments: Sequence[str]) -> int:
    """Install torch for `make`, from an index of its own if one is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", required=True, help="a file of pinned versions")
    parser.add_argument("--index", default="", help="the index that has the wanted build of torch")
    given = parser.parse_args(arguments)
    pip = (sys.executable, "-m", "pip")
    wanted = ["--constraint", given.constraint, "torch"]
    wanted += ["--index-url", given.index] if given.index else []
    packages = planned_downloads(pip, wanted)
    if packages:
        print(f"torch: {size_line(packages)}", flush=True)
    if has_cuda(packages) and not given.index:
        print(
            "This is the build for CUDA. On a machine without a GPU, press Ctrl-C and name an "
            f"index of builds without CUDA: make ... TORCH_INDEX=URL ({WHERE}).",
            flush=True,
        )
    done = subprocess.run(
        (*pip, "install", "--quiet", *wanted), stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        requirement = missing_build(done.stderr.splitlines())
        if requirement:
            print(*explanation(requirement, "make ... TORCH_INDEX=URL"), sep="\n", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
