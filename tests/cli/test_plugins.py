from __future__ import annotations

import sys
from types import SimpleNamespace

import attrs
import pytest

import art_core as art


@attrs.frozen
class Far:
    create: object = SimpleNamespace

    @art.hookimpl
    def art_backends(self):
        return [art.BackendSpec(name="far", create=self.create, summary="trains far away")]


class Broken:
    @art.hookimpl
    def art_sinks(self):
        raise RuntimeError("no key")


class TakesHelp:
    @art.hookimpl
    def art_commands(self):
        def create(parser):
            parser.add_argument("-h", "--height")

        return [art.CommandSpec(name="grow", summary="", create=create, run=lambda *_: [])]


class TakesAName:
    @art.hookimpl
    def art_losses(self):
        return [art.LossSpec(name="ppo", create=lambda: max)]


def test_plugins_are_listed_with_their_hooks(art_command):
    printed = art_command("plugins", plugins={"far": Far()}).splitlines()
    assert printed[0].split() == ["plugin", "version", "hooks", "error"]
    hooks = "art_checks, art_gpu_rate, art_sandboxes, art_sinks, art_token_rates"
    assert printed[1].split() == ["core", "-", *hooks.split()]
    assert printed[2].split() == ["far", "-", "art_backends"]


@pytest.mark.parametrize(
    ("plugin", "error"),
    [
        (Broken(), "RuntimeError: no key"),
        (TakesHelp(), "ArgumentError: argument -h/--height: conflicting option string: -h"),
        (TakesAName(), "PluginError: it offers a loss 'ppo', a name that is taken"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_plugin_is_listed_with_its_error(art_command, plugin, error):
    printed = art_command("plugins", plugins={"odd": plugin})
    assert f"plugin 'odd' is broken: {error}" in printed


def test_backends_are_listed_by_name(art_command):
    assert art_command("backends", plugins={"far": Far()}).splitlines() == [
        "backend  summary",
        "far      trains far away",
    ]


class Cluster:
    """Trains on a cluster.

    - `nodes`: how many machines.
    """

    def __init__(self, url, *, nodes=4):
        self.url, self.nodes = url, nodes


@pytest.mark.parametrize("create", [Cluster, "a_cluster:Cluster"])
def test_a_backend_tells_its_options(art_command, monkeypatch, create):
    monkeypatch.setitem(sys.modules, "a_cluster", SimpleNamespace(Cluster=Cluster))
    told = art_command("backends", "far", plugins={"far": Far(create)}).splitlines()
    assert told == [
        "far: trains far away",
        "",
        "Trains on a cluster.",
        "",
        "- `nodes`: how many machines.",
        "",
        "option  default",
        "url     (needed)",
        "nodes   4",
    ]


def test_a_backend_that_names_no_options_says_so(art_command):
    told = art_command("backends", "far", plugins={"far": Far(lambda: None)}).splitlines()
    assert told == ["far: trains far away", "", "", "It names no options."]


def test_a_backend_that_is_not_there_has_no_options(art_error):
    assert "no backend 'fra'; installed: far" in art_error(
        "backends", "fra", plugins={"far": Far()}
    )


def test_with_no_backend_it_says_what_to_install(art_command):
    assert art_command("backends") == "no backend is installed; try: pip install art-local\n"


def test_sinks_are_listed_with_those_that_get_rows_unasked(art_command):
    lines = art_command("sinks").splitlines()
    assert lines[0].split() == ["sink", "by", "default", "summary"]
    assert [line.split()[:2] for line in lines[1:]] == [["console", "yes"], ["doctor", "no"]]
