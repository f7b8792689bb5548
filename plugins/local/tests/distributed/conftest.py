"""The helpers beside the tests are no package. Ranks need a newer torch than the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from art_local.models.devices import MIN_TORCH

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore_glob: list[str] = []
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
    collect_ignore_glob = ["test_ranks.py", "test_groups.py"]
