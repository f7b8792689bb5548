"""The contract of plugin modules, and the kit's own imports."""

import importlib
import sys

import pytest

import art_core.testing
from art_core.testing.plugin import PluginContract, imported


def test_a_module_that_cannot_be_imported_fails_with_its_error():
    with pytest.raises(AssertionError, match="No module named 'art_missing'"):
        imported("art_missing")


def test_hooks_that_fail_are_left_to_the_test_that_shows_the_error(tmp_path, monkeypatch):
    text = "import art_core as art\n\n@art.hookimpl\ndef art_sinks():\n    raise OSError('down')\n"
    (tmp_path / "art_failing.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "art_failing" in imported("art_failing").effects["modules_after_hooks"]


def test_a_hook_that_offers_none_offers_nothing(tmp_path, monkeypatch):
    text = "import art_core as art\n\n@art.hookimpl\ndef art_sinks():\n    return None\n"
    (tmp_path / "art_offers_none.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "art_offers_none" in imported("art_offers_none").effects["modules_after_hooks"]
    contract = PluginContract()
    contract.module = "art_offers_none"
    contract.test_two_specs_do_not_share_a_name()
    contract.test_its_hooks_offer_specs_of_the_right_type()


def test_the_kit_is_imported_without_pytest_too(monkeypatch):
    monkeypatch.delitem(sys.modules, "pytest")
    importlib.reload(art_core.testing)
    assert "pytest" not in sys.modules
