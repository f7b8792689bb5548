"""The endpoint's page names every parameter, error code and route."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from art_core.endpoint.errors import Code
from art_core.endpoint.request import NEUTRAL, PARAMETERS, WITHOUT_EFFECT
from art_core.endpoint.tools import MARKERS

PAGE = (Path(__file__).parents[2] / "docs" / "endpoint.md").read_text()


def test_every_parameter_is_told() -> None:
    hidden = {"best_of", "functions", "function_call", "modalities", "repetition_penalty"}
    hidden |= {"frequency_penalty", "presence_penalty"}
    told = PARAMETERS | WITHOUT_EFFECT | (NEUTRAL.keys() - hidden)
    assert [name for name in sorted(told) if f"`{name}" not in PAGE] == []


def test_every_error_code_is_told() -> None:
    assert [code for code in get_args(Code) if f"`{code}`" not in PAGE] == []


def test_every_tool_format_is_told() -> None:
    assert [marker for marker in MARKERS if marker not in PAGE] == []
