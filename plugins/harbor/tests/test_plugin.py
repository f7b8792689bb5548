"""The plugin: its module, the folders of the environment variable, and `art env check`."""

import pytest

from art_core.cli.main import main
from art_core.testing.plugin import PluginContract
from art_harbor import plugin


class TestPlugin(PluginContract):
    module = "art_harbor.plugin"


def test_named_folders_are_environments(monkeypatch, tasks):
    monkeypatch.setenv("HARBOR_TASKS", f"small={tasks}, other=/nowhere")
    monkeypatch.setenv("HARBOR_SANDBOX", "subprocess")
    small, other = plugin.art_environments()
    assert (small.name, other.name) == ("harbor/small", "harbor/other")
    assert [scenario["id"] for scenario in small.tasks()] == ["greeting", "total"]
    assert small.load()().sandbox == "subprocess"
    monkeypatch.delenv("HARBOR_TASKS")
    assert plugin.art_environments() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_solutions_of_the_tasks_get_1_in_a_check(monkeypatch, tasks, namespaces, capsys):
    monkeypatch.setenv("HARBOR_TASKS", f"small={tasks}")
    monkeypatch.setenv("HARBOR_SANDBOX", "subprocess")
    assert main(["env", "check", "harbor/small"]) == 0
    found = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:6])
    assert found["answers correctly"] == "1"
    assert found["says nothing"] == "0"
