"""For plugin authors: contracts to subclass (these need pytest), and a backend that echoes.

A backend's whole test is `class TestMine(BackendContract)` with one fixture, `make_backend`.
"""

import sys

# A contract that fails should show its values, as a test of one's own does.
if "pytest" in sys.modules:
    for _contract in ("backend", "plugin", "pricing", "rollup", "sink"):
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_contract}")
