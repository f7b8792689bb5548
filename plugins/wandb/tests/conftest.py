from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("wandb", reason="needs wandb: pip install art-wandb")
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_account(tmp_path_factory, monkeypatch):
    """No key, in the environment or in files, and none of the caller's wandb settings.

    A child process that is given WANDB_SERVICE would share this one's service, and outlive a kill.
    """
    for name in ("API_KEY", "MODE", "DIR", "BASE_URL", "ENTITY", "TAGS", "SAVE_CODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    os.environ.pop("WANDB_SERVICE", None)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    with warnings.catch_warnings():
        # wandb never asks what became of the service that it started.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
