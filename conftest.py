"""What all tests share, the core's, the plugins' and the documents'."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_engines_of_this_machine(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Run each test without a vLLM that is installed here, which `engine="auto"` would take."""
    if request.node.get_closest_marker("vllm") is None:
        monkeypatch.setenv("ART_ENGINES", str(tmp_path_factory.getbasetemp() / "no-engines"))
