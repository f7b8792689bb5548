"""Each contract passes for a right plugin and finds every broken one, by the test it names."""

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from mutants import advantages, backends, environments, plugins, prices, rollups, runner, sinks

# A broken plugin should fail by what the contract asserts, not by a mistake in its own code.
MISTAKE = re.compile(r"(Attribute|Name|Type|Key|Index|Import)Error")
KINDS = {
    "advantage": advantages,
    "backend": backends,
    "environment": environments,
    "plugin": plugins,
    "price": prices,
    "rollup": rollups,
    "sink": sinks,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_passes_for_a_right_plugin_and_finds_each_broken_one(kind):
    module = KINDS[kind]
    broken = {f"Test{fault.__name__}": test for fault, test in module.FAULTS.items()}
    right = [name for name in ("TestRight", "TestLearner") if hasattr(module, name)]
    tests = [*right, *(f"{name}::{test}" for name, test in broken.items())]
    outcomes = runner.run(Path(module.__file__), tests)
    passed = {test: what for (name, test), what in outcomes.items() if name in right}
    assert {test: what for test, what in passed.items() if what != "passed"} == {}
    assert set(broken.values()) == passed.keys(), "each test finds at least one fault"
    assert len(broken) >= 12
    found = {name: outcomes[name, test] for name, test in broken.items()}
    assert {name for name, why in found.items() if why in ("passed", "skipped")} == set()
    assert {name: why for name, why in found.items() if MISTAKE.match(why)} == {}
