from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install art-local")
sys.path.append(str(Path(__file__).parent))
