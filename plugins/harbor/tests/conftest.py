import os
import shutil
import subprocess
from pathlib import Path

import pytest

import art_core as art

TASKS = Path(__file__).parent / "tasks"
BASE = "localhost/art-harbor-test-base"
PROGRAMS = "bash sh cat mkdir rm chmod timeout sleep base64 tar seq wc true test env"


@pytest.fixture
def tasks(tmp_path):
    """Return a copy of the tasks."""
    return shutil.copytree(TASKS, tmp_path / "tasks")


@pytest.fixture(scope="session")
def namespaces():
    """Skip where Linux permits no namespaces."""
    try:
        art.sandbox("subprocess", strict=True)
    except art.ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """Return Docker or Podman, with an image of a few programs of this machine; skip without one.

    CONTAINER_PROGRAM names the program; the default is the first of the two that runs a container.
    """
    folder = tmp_path_factory.mktemp("image")
    _few_programs(folder / "root")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
    for program in filter(None, [os.environ.get("CONTAINER_PROGRAM"), "docker", "podman"]):
        build, run = ["build", "--tag", BASE, str(folder)], ["run", "--rm", BASE, "true"]
        if shutil.which(program) and _works(program, *build) and _works(program, *run):
            return program
    pytest.skip("neither Docker nor Podman runs a container here")


def _works(*command):
    return subprocess.run(command, check=False, capture_output=True, timeout=300).returncode == 0


def _few_programs(root):
    for program in PROGRAMS.split():
        found = shutil.which(program)
        listed = subprocess.run(["ldd", found], check=False, capture_output=True, text=True)
        libraries = listed.stdout
        paths = [word for word in libraries.split() if word.startswith("/")]
        for source, place in [(found, f"bin/{program}"), *((p, p.lstrip("/")) for p in paths)]:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / place)
    (root / "tmp").mkdir()
