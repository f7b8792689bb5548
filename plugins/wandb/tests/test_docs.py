from __future__ import annotations

from pathlib import Path

import attrs

from art_wandb.plugin import WandbOptions

PAGE = Path(__file__).parents[3] / "docs" / "sinks.md"


def test_every_option_is_told():
    told = PAGE.read_text().partition("## Weights & Biases")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in told.splitlines() if line.startswith("| ")]
    assert [f.name for f in attrs.fields(WandbOptions) if f"`{f.name}`" not in "".join(cells)] == []
