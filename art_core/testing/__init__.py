"""Contracts for plugin authors to subclass, which need pytest, and a backend that echoes.

The test of a backend is `class TestMine(BackendContract)` with one fixture, `make_backend`.
"""

import sys

# A contract that fails shows the values of its asserts, as the author's own tests do.
if "pytest" in sys.modules:
    for _contract in (
        "advantages",
        "backend",
        "checks",
        "plugin",
        "pricing",
        "reward",
        "rollup",
        "sink",
    ):
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_contract}")
