from __future__ import annotations

import sys
from pathlib import Path

import pytest

from art_local.testing.tiny_vision import KINDS, save_tiny_vision_model

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", params=KINDS)
def base(request, tmp_path_factory):
    """The directory of a tiny model that reads images."""
    return save_tiny_vision_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    """The directory of one tiny model that reads images."""
    return save_tiny_vision_model(tmp_path_factory.mktemp("vision"), "llava", context_length=300)
