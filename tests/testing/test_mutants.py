"""Each contract passes for a right plugin and finds every broken one, by the test it names."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from mutants import runner, sinks

KINDS = {"sink": sinks}


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_passes_for_a_right_plugin_and_finds_each_broken_one(kind):
    module = KINDS[kind]
    broken = {f"Test{fault.__name__}": test for fault, test in module.FAULTS.items()}
    tests = ["TestRight", *(f"{name}::{test}" for name, test in broken.items())]
    outcomes = runner.run(Path(module.__file__), tests)
    right = {test: what for (name, test), what in outcomes.items() if name == "TestRight"}
    assert {test: what for test, what in right.items() if what != "passed"} == {}
    assert set(broken.values()) <= right.keys()
    assert {name: outcomes[name, test] for name, test in broken.items()} == dict.fromkeys(
        broken, "failed"
    )
    assert len(broken) >= 12
