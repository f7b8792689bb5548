"""What torch reads once, when it is imported: how long its threads spin, and pages of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from art_local.torch_environment import SPINS

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MAPPED = Path("/proc/self/smaps_rollup")


def printed(code, **environment):
    """What a new process prints after it has set its environment."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = (
        "import os; from art_local.torch_environment import set_torch_environment; "
        f"print(set_torch_environment()); {code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "")],
)
def test_threads_spin_briefly_unless_the_user_chose(environment, expected):
    code = "print(os.environ.get('GOMP_SPINCOUNT', ''))"
    assert printed(code, **environment) == ["True", expected]


@pytest.mark.skipif(
    not (HUGE_PAGES.exists() and MAPPED.exists()) or "[never]" in HUGE_PAGES.read_text(),
    reason="needs transparent huge pages",
)
@pytest.mark.parametrize("chosen", ["", "0"])
def test_large_tensors_use_huge_pages_unless_the_user_chose(chosen):
    code = (
        f"import torch; x = torch.ones(1 << 26); lines = open('{MAPPED}').readlines(); "
        "print(next(line.split()[1] for line in lines if line.startswith('AnonHugePages')))"
    )
    ready, kilobytes = printed(code, **({"THP_MEM_ALLOC_ENABLE": chosen} if chosen else {}))
    assert ready == "True"
    if "[madvise]" in HUGE_PAGES.read_text() or not chosen:
        assert (int(kilobytes) >= 1 << 17) == (not chosen)
