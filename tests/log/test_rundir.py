import orjson
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.base.files import checked_name
from art_core.log.reader import LoggedRun, find_run, find_runs
from art_core.log.rundir import run_directory, runs_path


def test_runs_lie_where_told_else_in_art_dir_else_here(monkeypatch):
    monkeypatch.delenv("ART_DIR", raising=False)
    assert str(runs_path(None)) == ".art"
    monkeypatch.setenv("ART_DIR", "elsewhere")
    assert str(runs_path(None)) == "elsewhere"
    assert str(runs_path("given")) == "given"


@pytest.mark.parametrize("name", ["a", "agent-001", "Qwen 2.5_x", "агент", "a..b", "x" * 128])
def test_a_name_that_can_be_a_directory_is_taken_as_it_is(name):
    assert checked_name("model", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " a",
        "a ",
        ".",
        "..",
        ".hidden",
        "a/b",
        "../a",
        "a\\b",
        "a:b",
        "a\nb",
        "a\0b",
        "\ud800",
        "x" * 300,
        "é" * 65,
        None,
        3,
    ],
    ids=lambda name: f"{name!r:.12}",
)
def test_a_name_that_cannot_is_refused_with_what_can(name):
    with pytest.raises(ConfigError, match=r"project name .* can't be a directory's name\. Use"):
        checked_name("project", name)


def test_a_run_lies_where_the_art_reference_puts_it(tmp_path):
    assert run_directory(tmp_path, "p", "m") == tmp_path / "p" / "models" / "m"
    with pytest.raises(ConfigError, match="project name"):
        run_directory(tmp_path, "..", "m")
    with pytest.raises(ConfigError, match="model name"):
        run_directory(tmp_path, "p", "a/b")


def make(base, project, name, status=None):
    directory = run_directory(base, project, name)
    directory.mkdir(parents=True)
    (directory / "history.jsonl").touch()
    if status:
        (directory / "status.json").write_bytes(orjson.dumps({"status": status}))
    return directory


def test_runs_are_found_by_project_and_name(tmp_path):
    for project, name in (("b", "one"), ("a", "two"), ("a", "one")):
        make(tmp_path, project, name)
    (tmp_path / "a" / "models" / "no-log").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["a/one", "a/two", "b/one"]
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_a_run_is_found_by_its_directory_its_full_name_or_a_name_of_its_own(tmp_path):
    for project, name in (("a", "one"), ("a", "two"), ("b", "one")):
        make(tmp_path, project, name)
    by_path = find_run(str(tmp_path / "a" / "models" / "two"), tmp_path / "elsewhere")
    assert by_path == find_run("a/two", tmp_path) == find_run("two", tmp_path)
    assert by_path.history.is_file()


def test_a_run_is_found_from_inside_its_directory_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a", "one"))
    for asked in (".", "../one"):
        assert find_run(asked, tmp_path / "elsewhere").name == "a/one"


def test_a_name_of_several_runs_is_an_error_that_names_them(tmp_path):
    make(tmp_path, "a", "one")
    make(tmp_path, "b", "one")
    with pytest.raises(ConfigError, match="2 runs are named 'one': a/one, b/one"):
        find_run("one", tmp_path)


@pytest.mark.parametrize("asked", ["a/oen", "x" * 5000, "a\0b"], ids=["typo", "long", "nul"])
def test_an_unknown_run_is_told_with_those_that_there_are(tmp_path, asked):
    make(tmp_path, "a", "one")
    with pytest.raises(ConfigError, match=r"; in .*: a/one"):
        find_run(asked, tmp_path)


@pytest.mark.parametrize(
    ("said", "status"),
    [("finished", "finished"), ("failed", "failed"), ("running", "killed"), (None, "unknown")],
)
def test_the_status_is_what_the_run_said_last(tmp_path, said, status):
    assert LoggedRun(make(tmp_path, "a", "one", said)).status() == status


def test_a_run_that_is_open_is_running(tmp_path):
    model = art.Model(name="one", project="a", base_path=tmp_path, sinks=[], plugins=art.Plugins())
    found = LoggedRun(model.run.info.run_dir)
    assert found.status() == "running"
    model.run.close()
    assert found.status() == "finished"
