"""Environments that plugins offer: how they are found, loaded and refused."""

import sys

import pytest

import art_core as art
from art_core.base.errors import ConfigError, PluginError

MODULE = """
SCENARIOS = [{"id": "a"}]
NUMBER = 3

def scenarios():
    return iter(SCENARIOS)

def make():
    return "an environment"
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "art_test_world.py").write_text(MODULE)
    (tmp_path / "art_test_broken.py").write_text("raise SystemExit('no licence')")
    yield "art_test_world"
    for name in ("art_test_world", "art_test_broken"):
        sys.modules.pop(name, None)


def spec(**options):
    return art.EnvironmentSpec(**{"name": "world", "target": dict, "summary": "a world"} | options)


def host(*specs):
    class Plugin:
        @art.hookimpl
        def art_environments(self):
            return specs

    plugins = art.Plugins()
    plugins.register(Plugin(), "worlds")
    return plugins


def test_an_environment_is_found_by_name():
    world = spec()
    assert host(world).environment("world") is world


def test_an_unknown_name_is_refused_with_those_that_are_installed():
    with pytest.raises(ConfigError, match="no environment 'wrld'; installed: world"):
        host(spec()).environment("wrld")
    with pytest.raises(ConfigError, match="pip install art-verifiers"):
        host().environment("verifiers")


@pytest.mark.parametrize("target", ["no path", 3, None])
def test_an_offer_without_a_target_sets_its_plugin_aside(target):
    plugins = host(spec(target=target))
    assert plugins.environments() == {}
    assert "not a spec with a name and a target" in str(plugins.problems["worlds"])


def test_what_is_given_by_path_is_imported_when_it_is_loaded(module):
    world = spec(target=f"{module}:make", scenarios=f"{module}:SCENARIOS")
    assert module not in sys.modules
    assert world.load()() == "an environment"
    assert world.tasks() == [{"id": "a"}]
    assert spec(scenarios=f"{module}:scenarios").tasks() == [{"id": "a"}]
    assert (spec().load(), spec().tasks()) == (dict, [])


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("art_test_broken:make", "can't be loaded: SystemExit: no licence"),
        ("art_test_world:nothing", "can't be loaded: AttributeError"),
        ("art_test_none:make", "can't be loaded: ModuleNotFoundError"),
        ("art_test_world:NUMBER", "is 3, which is not a function"),
    ],
)
def test_one_that_can_not_be_loaded_is_named(module, target, problem):
    with pytest.raises(PluginError, match=f"the environment 'world' {problem}"):
        spec(target=target).load()


def test_the_modules_that_it_needs_are_imported_before(module):
    assert spec(modules=[module]).load() is dict
    with pytest.raises(PluginError, match="'world' can't be loaded: SystemExit: no licence"):
        spec(modules=[module, "art_test_broken"]).load()


def test_scenarios_that_can_not_be_made_are_named(module):
    with pytest.raises(PluginError, match="the scenarios of the environment 'world' can't be"):
        spec(scenarios=f"{module}:NUMBER").tasks()
