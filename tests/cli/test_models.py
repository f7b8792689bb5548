from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import art_core as art


@attrs.define
class Shop:
    """A backend plugin with a catalogue of models."""

    name: str
    wares: tuple[str, ...] | None
    pulled: list[str] = attrs.field(factory=list)

    @art.hookimpl
    def art_backends(self):
        catalog = None if self.wares is None else (lambda: self)
        return [art.BackendSpec(name=self.name, create=SimpleNamespace, summary="", models=catalog)]

    def list(self):
        here = {"small": Path("/here/small")}
        return [
            art.BaseModel(name=ware, summary=f"{ware} model", path=here.get(ware))
            for ware in self.wares
        ]

    def pull(self, name: str) -> Path:
        self.pulled.append(name)
        return Path("/cache") / name


@pytest.fixture
def shops():
    return {"near": Shop("near", ("small", "big")), "far": Shop("far", ("huge",))}


def test_models_of_all_backends_are_listed(art_command, shops):
    lines = [line.split() for line in art_command("models", "list", plugins=shops).splitlines()]
    assert ["near", "small", "/here/small", "small", "model"] in lines
    assert ["far", "huge", "not", "here", "huge", "model"] in lines


def test_or_of_one_backend(art_command, shops):
    assert "huge" not in art_command("models", "list", "--backend", "near", plugins=shops)


def test_the_action_may_be_left_out(art_command, shops):
    assert art_command("models", plugins=shops) == art_command("models", "list", plugins=shops)
    near = art_command("models", "list", "--backend", "near", plugins=shops)
    assert art_command("models", "--backend", "near", plugins=shops) == near
    assert art_command("models", "--backend", "near", "list", plugins=shops) == near


def test_a_model_is_pulled_by_the_backend_that_knows_it(art_command, shops):
    assert art_command("models", "pull", "huge", plugins=shops) == "/cache/huge\n"
    assert (shops["far"].pulled, shops["near"].pulled) == (["huge"], [])


def test_a_model_that_none_knows_is_pulled_by_the_only_backend(art_command, shops):
    del shops["far"]
    assert art_command("models", "pull", "org/new", plugins=shops) == "/cache/org/new\n"


def test_a_model_that_several_could_pull_asks_for_one(art_error, shops):
    error = art_error("models", "pull", "org/new", plugins=shops)
    assert "2 backends could fetch 'org/new': " in error
    assert "--backend" in error


def test_a_backend_may_have_no_models_to_list(art_command, art_error):
    plugins = {"plain": Shop("plain", None)}
    assert "backend 'plain' has no models" in art_error(
        "models", "list", "--backend", "plain", plugins=plugins
    )
    assert "the installed backends have no models" in art_command("models", "list", plugins=plugins)
    assert "no models to list" in art_error("models", "pull", "x", plugins=plugins)


def test_an_unknown_backend_names_those_that_exist(art_error, shops):
    error = art_error("models", "list", "--backend", "naer", plugins=shops)
    assert "installed: far, near. Did you mean 'near'?" in error
