from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # sample_runs, for these tests and the benchmark


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Return a directory of four runs, one of them with two attempts."""
    import asyncio

    from sample_runs import log_run

    base = tmp_path_factory.mktemp("runs")

    async def log() -> None:
        await log_run(base, "agent-001", steps=12)
        await log_run(base, "agent-001", steps=10, start=11)
        await log_run(base, "agent-002", steps=10, quality=0.5)
        await log_run(base, "agent-001", steps=10, project="maths", quality=0.7)

    asyncio.run(log())
    return base
