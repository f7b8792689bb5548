"""Tables of the contracts in `art_core.testing`: their settings and the faults that they find."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from art_core.testing.advantages import AdvantageContract
from art_core.testing.backend import BackendContract, LearningContract
from art_core.testing.environment import EnvironmentContract
from art_core.testing.plugin import PluginContract
from art_core.testing.pricing import PricingContract
from art_core.testing.reward import RewardContract
from art_core.testing.rollup import RollupContract
from art_core.testing.sandbox import SandboxContract
from art_core.testing.sink import SinkContract
from art_core.testing.statements import Contract

TESTS = Path(__file__).parent.parent / "tests" / "testing"
CONTRACTS: dict[str, type[Contract]] = {
    "advantage": AdvantageContract,
    "backend": BackendContract,
    "environment": EnvironmentContract,
    "learning": LearningContract,
    "plugin": PluginContract,
    "price": PricingContract,
    "reward": RewardContract,
    "rollup": RollupContract,
    "sandbox": SandboxContract,
    "sink": SinkContract,
}


def settings_table(kind: str) -> str:
    """Return a Markdown table of a contract's settings."""
    contract = CONTRACTS[kind]
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    inherited = BackendContract.settings if kind == "learning" else ()
    for setting in contract.settings[len(inherited) :]:
        default = contract.default(setting.name)
        lines.append(f"| `{setting.name}` | `{default!r}` | {setting.meaning} |")
    return "\n".join(lines)


def faults_table(kind: str) -> str:
    """Return a Markdown table of the broken plugins that a contract is tried on.

    `tests/testing/test_mutants.py` asserts that each of them fails the test beside it.
    """
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    faults = importlib.import_module(f"mutants.{kind}s").FAULTS
    lines = ["| fault | found by |", "|---|---|"]
    for fault, test in faults.items():
        lines.append(f"| {fault.__doc__} | {sentence(test)} |")
    return "\n".join(lines)


def sentence(test: str) -> str:
    """Return a test's name as words."""
    return test.removeprefix("test_").replace("_", " ")
