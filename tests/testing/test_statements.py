"""Settings of contracts: each is documented, and what an author sets is reported."""

import sys
from pathlib import Path

import pytest

from art_core.testing.backend import BackendContract, LearningContract
from art_core.testing.plugin import PluginContract
from art_core.testing.pricing import PricingContract
from art_core.testing.rollup import RollupContract
from art_core.testing.sink import SinkContract

sys.path.append(str(Path(__file__).parent))
from mutants.runner import run_text

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = {
    BackendContract: "write-a-backend.md",
    LearningContract: "write-a-backend.md",
    PluginContract: "contracts.md",
    PricingContract: "write-a-price-book.md",
    RollupContract: "write-a-price-book.md",
    SinkContract: "write-a-sink.md",
}


def attributes(contract):
    """The names of a contract's public attributes that are plain values."""
    values = {name: getattr(contract, name) for name in dir(contract) if name[0] != "_"}
    plain = {name for name, value in values.items() if not callable(value)}
    return {name for name in plain if "fixture" not in type(values[name]).__name__.lower()}


@pytest.mark.parametrize("contract", PAGES)
def test_every_attribute_is_a_setting_and_documented(contract):
    names = [setting.name for setting in contract.settings]
    assert attributes(contract) - {"settings", "pytestmark"} == set(names)
    page = (DOCS / PAGES[contract]).read_text()
    assert [name for name in names if f"| `{name}` |" not in page] == []


TEXT = """
    import pytest
    from art_core.testing.statements import Contract, Setting

    class Kit(Contract):
        settings = (Setting("size", "how large", "smaller ones were not tried"),
                    Setting("speed", "how fast"))
        size = 1
        speed = 1

        def test_it(self):
            self.state("it is a test")

    class TestDefault(Kit):
        def test_it(self):
            pass

    class TestLarge(Kit):
        size = 2
        speed = 2
"""


def test_what_is_set_is_shown_once_at_the_end(tmp_path, capsys):
    code, outcomes = run_text(TEXT, tmp_path)
    assert (code, outcomes) == (0, ["passed", "passed"])
    shown = capsys.readouterr().out.partition("contracts: stated by their authors")[2]
    assert shown.splitlines()[1:3] == [
        "TestLarge: size = 2: smaller ones were not tried",
        "TestLarge: it is a test",
    ]
    assert "TestDefault" not in shown
