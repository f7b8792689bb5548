from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import art_core as art


@attrs.define
class Garage:
    """A backend plugin with a catalogue of engines."""

    name: str
    kept: dict[str, str | None] | None

    @art.hookimpl
    def art_backends(self):
        catalog = None if self.kept is None else (lambda: self)
        return [
            art.BackendSpec(name=self.name, create=SimpleNamespace, summary="", engines=catalog)
        ]

    def list(self):
        return [self._engine(name) for name in self.kept]

    def install(self, name, index=None):
        self.kept[name] = "1.0" if index is None else f"1.0 from {index}"
        return self._engine(name)

    def remove(self, name):
        was, self.kept[name] = self.kept[name], None
        return Path("/engines") / name if was else None

    def _engine(self, name):
        version = self.kept[name]
        path = Path("/engines") / name if version else None
        return art.InferenceEngine(name=name, summary=f"runs {name}", version=version, path=path)


@pytest.fixture
def garages():
    return {
        "near": Garage("near", {"fast": None, "slow": "0.9"}),
        "far": Garage("far", {"big": None}),
    }


@pytest.mark.parametrize("words", [("engines",), ("engines", "list")])
def test_engines_of_all_backends_are_listed(art_command, garages, words):
    lines = [line.split() for line in art_command(*words, plugins=garages).splitlines()]
    assert lines[0] == ["backend", "engine", "version", "path", "summary"]
    assert ["near", "slow", "0.9", "/engines/slow", "runs", "slow"] in lines
    assert ["far", "big", "not", "installed", "runs", "big"] in lines


def test_or_of_one_backend(art_command, garages):
    assert "big" not in art_command("engines", "list", "--backend", "near", plugins=garages)
    assert "big" not in art_command("engines", "--backend", "near", plugins=garages)


def test_an_engine_is_installed_and_removed_by_the_backend_that_knows_it(art_command, garages):
    installed = art_command("engines", "install", "big", plugins=garages)
    assert installed == "big 1.0 in /engines/big\n"
    assert art_command("engines", "remove", "big", plugins=garages) == "removed /engines/big\n"
    assert art_command("engines", "remove", "big", plugins=garages) == "big was not installed\n"


def test_an_unknown_engine_names_those_that_exist(art_error, garages):
    error = art_error("engines", "install", "bigg", plugins=garages)
    assert "no engine 'bigg'; known: big, fast, slow. Did you mean 'big'?" in error


def test_an_engine_of_several_backends_asks_for_one(art_command, art_error, garages):
    garages["far"].kept["fast"] = None
    error = art_error("engines", "install", "fast", plugins=garages)
    assert "2 backends have an engine 'fast': " in error
    assert "--backend" in error
    art_command("engines", "install", "fast", "--backend", "far", plugins=garages)
    assert (garages["far"].kept["fast"], garages["near"].kept["fast"]) == ("1.0", None)


def test_a_backend_may_have_no_engines_to_list(art_command, art_error):
    plugins = {"plain": Garage("plain", None)}
    error = art_error("engines", "list", "--backend", "plain", plugins=plugins)
    assert "backend 'plain' has no engines" in error
    assert "the installed backends have no engines" in art_command("engines", plugins=plugins)
    assert "no engines to list" in art_error("engines", "install", "x", plugins=plugins)


def test_an_engine_may_come_from_another_package_index(art_command, garages):
    words = ("engines", "install", "big", "--index", "https://builds.example")
    assert "1.0 from https://builds.example" in art_command(*words, plugins=garages)


class Shed(Garage):
    """A catalogue that knows no package indexes."""

    def install(self, name):
        raise AssertionError("it is asked all the same")


def test_a_catalog_that_takes_no_package_index_says_so(art_error):
    words = ("engines", "install", "big", "--index", "https://builds.example")
    error = art_error(*words, plugins={"shed": Shed("shed", {"big": None})})
    assert "engine 'big' takes no package index" in error
    assert "without --index" in error
