from __future__ import annotations

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


@pytest.mark.parametrize(
    ("kind", "name", "written"),
    [("sink", "my-files", "art_sink_my_files"), ("backend", "cluster", "art_backend_cluster")],
)
def test_what_it_writes_keeps_the_contracts(new, tmp_path, run_its_tests, kind, name, written):
    status, out, _ = new(kind, name)
    folder = tmp_path / f"art-{kind}-{name}"
    assert status == 0
    assert str(folder / written / "plugin.py") in out.splitlines()
    said = run_its_tests(folder, "tests")
    assert " passed" in said
    assert "skipped" not in said


def test_all_words_of_the_templates_are_filled_in(new, tmp_path):
    new("sink", "my-files")
    new("backend", "cluster")
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        assert "$" not in file.read_text()
        assert file.suffix in (".py", ".toml", ".md")
        if file.suffix == ".py":
            compile(file.read_text(), str(file), "exec")


def test_what_is_there_is_not_overwritten(new, tmp_path):
    (tmp_path / "art-sink-mine").mkdir()
    status, out, err = new("sink", "mine")
    assert (status, out) == (2, "")
    assert f"{tmp_path / 'art-sink-mine'} is already there. Choose another name" in err
    assert list((tmp_path / "art-sink-mine").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["Mine", "my_sink", "../up", "a/b", "1st", "a--b", "a-", "", "ä", "x" * 41, "a b"]
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
