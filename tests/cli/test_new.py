from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import art_core as art
from art_core.cli.main import main


@pytest.fixture
def new(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `art new ... --into tmp_path`; returns status, standard output and error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        plugins = art.Plugins.discover()
        status = main(["new", *arguments, "--into", str(tmp_path)], plugins)
        return status, *capsys.readouterr()

    return run


KINDS = {
    "sink": ("art-sink-my-files", "art_sink_my_files"),
    "backend": ("art-backend-cluster", "art_backend_cluster"),
    "price-book": ("art-prices-acme", "art_prices_acme"),
    "loss": ("art-loss-gentle", "art_loss_gentle"),
    "advantages": ("art-advantages-ranks", "art_advantages_ranks"),
    "check": ("art-check-vanishing-gradient", "art_check_vanishing_gradient"),
    "command": ("art-command-rate", "art_command_rate"),
}
TORCH = pytest.param("loss", marks=pytest.mark.torch)


@pytest.mark.parametrize("kind", [TORCH if kind == "loss" else kind for kind in KINDS])
def test_the_tests_that_it_writes_pass(new, tmp_path, run_its_tests, kind):
    distribution, package = KINDS[kind]
    status, out, _ = new(kind, re.sub("art-[a-z]+-", "", distribution))
    folder = tmp_path / distribution
    assert status == 0
    assert str(folder / package / "__init__.py") in out.splitlines()
    if kind == "loss":
        pytest.importorskip("torch")
    said = run_its_tests(folder, "tests")
    assert " passed" in said
    # a backend that has no `train_sft` skips its tests
    assert "skipped" not in said or kind == "backend"


@pytest.mark.parametrize("name", ["a", "x" * 30, "a-b-c"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_formatted_and_without_faults(new, tmp_path, kind, name):
    assert new(kind, name)[0] == 0
    (folder,) = tmp_path.iterdir()
    for call in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *call, "--no-cache", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_all_words_of_the_templates_are_filled_in(new, tmp_path, kind):
    new(kind, "my-own")
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        assert not re.search(r"\$[{\w]", file.read_text())
        assert file.suffix in (".py", ".toml", ".md")
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_can_be_built_from_what_it_writes(new, tmp_path, kind):
    new(kind, "my-own")
    (folder,) = tmp_path.iterdir()
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (folder / package / "__init__.py").exists()
    assert (folder / project["project"]["readme"]).exists()
    for module in project["project"].get("entry-points", {}).get("art_core", {}).values():
        assert (folder / Path(*module.split("."))).with_suffix(".py").exists()


def test_what_is_there_is_not_overwritten(new, tmp_path):
    (tmp_path / "art-sink-mine").mkdir()
    status, out, err = new("sink", "mine")
    assert (status, out) == (2, "")
    assert f"{tmp_path / 'art-sink-mine'} is already there. Choose another name" in err
    assert list((tmp_path / "art-sink-mine").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["Mine", "my_sink", "../up", "a/b", "1st", "a--b", "a-", "", "ä", "x" * 31, "a b"]
)
def test_a_name_that_cannot_be_a_plugins_is_refused(new, tmp_path, name):
    status, _, err = new("sink", name)
    assert status == 2
    assert "can't be the name of a sink. Use lower-case letters" in err
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_an_installed_plugin_is_refused(new):
    status, _, err = new("sink", "console")
    assert status == 2
    assert "a sink 'console' is installed already; there are: " in err


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("backend", "local", "a backend 'local' is installed already"),
        ("command", "runs", "a command 'runs' is installed already; there are: backends, "),
        ("command", "completion", "a command 'completion' is installed already"),
    ],
)
def test_a_name_that_is_taken_is_refused(new, tmp_path, kind, name, problem):
    status, _, err = new(kind, name)
    assert status == 2
    assert problem in err
    assert list(tmp_path.iterdir()) == []
