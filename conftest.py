"""Fixtures of all tests: the core's, the plugins' and the documents'."""

from __future__ import annotations

import os
import re
import runpy
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from art_core.log.rows import read_rows

# Models of the tests are tiny: more threads wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A client that is made reads all certificates of a file, which takes longer than most tests. Of a
# directory it reads one when it needs it.
CERTIFICATES = os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().openssl_capath
if any(Path(CERTIFICATES).glob("*.0")):
    os.environ["SSL_CERT_DIR"] = CERTIFICATES
    os.environ.pop("SSL_CERT_FILE", None)

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_engines_of_this_machine(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Run each test without a vLLM that is installed here, which `engine="auto"` would take."""
    if request.node.get_closest_marker("vllm") is None:
        monkeypatch.setenv("ART_ENGINES", str(tmp_path_factory.getbasetemp() / "no-engines"))


@pytest.fixture
def run_example_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, str, str], list[int]]:
    """Type off the one example of a README, with another base model, run it in an empty directory
    and return the training steps in its log.
    """

    def run(readme: Path, base_model: str, instead: str) -> list[int]:
        (example,) = re.findall(
            r"^```python\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL
        )
        assert base_model in example
        script = tmp_path / "train.py"
        script.write_text(example.replace(base_model, instead))
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(script), run_name="__main__")
        history = tmp_path / ".art" / "demo" / "models" / "agent-001" / "history.jsonl"
        return [row.step for row, _ in read_rows(history) if row.split == "train"]

    return run
