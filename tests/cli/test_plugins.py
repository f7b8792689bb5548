from __future__ import annotations

from types import SimpleNamespace

import art_core as art


class Far:
    @art.hookimpl
    def art_backends(self):
        return [art.BackendSpec(name="far", create=SimpleNamespace, summary="trains far away")]


class Broken:
    @art.hookimpl
    def art_sinks(self):
        raise RuntimeError("no key")


def test_plugins_are_listed_with_their_hooks(art_command):
    printed = art_command("plugins", plugins={"far": Far()}).splitlines()
    assert printed[0].split() == ["plugin", "version", "hooks", "error"]
    assert printed[1].split() == ["core", "-", "art_gpu_rate,", "art_sinks,", "art_token_rates"]
    assert printed[2].split() == ["far", "-", "art_backends"]


def test_a_broken_plugin_is_listed_with_its_error(art_command):
    printed = art_command("plugins", plugins={"odd": Broken()})
    assert "plugin 'odd' is broken: RuntimeError: no key" in printed


def test_backends_are_listed_by_name(art_command):
    assert art_command("backends", plugins={"far": Far()}).splitlines() == [
        "backend  summary",
        "far      trains far away",
    ]


def test_with_no_backend_it_says_what_to_install(art_command):
    assert art_command("backends") == "no backend is installed; try: pip install art-local\n"
