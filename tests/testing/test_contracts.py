"""The contracts hold for what keeps to them, and fail for what does not."""

import importlib
import sys
from textwrap import dedent

import pytest

import art_core as art
import art_core.testing
from art_core.testing.plugin import PluginContract


@pytest.fixture
def contract(tmp_path, monkeypatch):
    """The contract of a plugin module with some code, installed."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(code):
        (tmp_path / "art_contract.py").write_text("import art_core as art\n" + dedent(code))
        info = tmp_path / "art_contract-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: art-contract\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[art_core]\ncontract = art_contract\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        made = PluginContract()
        made.module = "art_contract"
        return made

    yield install
    sys.modules.pop("art_contract", None)


GOOD = """
    @art.hookimpl
    def art_backends():
        return [art.BackendSpec(name="good", create=dict, summary="trains")]
"""
LOSS = """
    @art.hookimpl
    def art_losses():
        return [art.LossSpec(name="ppo", create=lambda: max)]
"""
COMMAND = """
    @art.hookimpl
    def art_commands():
        return [art.CommandSpec(name="do this", summary="x", create=bool, run=lambda *_: [])]
"""
CHECKS = [name for name in dir(PluginContract) if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_plugin_keeps_its_contract(contract, check):
    getattr(contract(GOOD), check)()


@pytest.mark.parametrize(
    ("code", "check"),
    [
        ("import pydantic\n", "importing_it_loads_nothing_heavy"),
        ("", "its_hooks_are_spelt_as_the_core_spells_them"),
        ("@art.hookimpl\ndef art_backend(): ...", "its_hooks_are_spelt_as_the_core_spells_them"),
        (GOOD.replace('"good"', '"Too Good"'), "its_specs_are_well_formed"),
        (GOOD.replace('"trains"', '""'), "its_specs_are_well_formed"),
        (LOSS, "its_specs_are_well_formed"),
        (COMMAND, "its_specs_are_well_formed"),
        (
            """
            @art.hookimpl
            def art_metrics():
                return [art.MetricSpec(key="reward/mean", unit="apples", help="")]
            """,
            "its_metrics_join_the_catalogue",
        ),
    ],
)
def test_a_plugin_that_does_not_keep_its_contract_fails(contract, code, check):
    broken = contract(code)
    with pytest.raises((AssertionError, art.PluginError)):
        getattr(broken, f"test_{check}")()


def test_a_module_without_an_entry_point_is_not_installed():
    made = PluginContract()
    made.module = "art_core.plugins.builtin"
    with pytest.raises(AssertionError):
        made.test_it_is_installed_as_an_entry_point()


def test_the_kit_is_imported_without_pytest_too(monkeypatch):
    monkeypatch.delitem(sys.modules, "pytest")
    importlib.reload(art_core.testing)
    assert "pytest" not in sys.modules
