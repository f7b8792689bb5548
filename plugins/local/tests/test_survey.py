"""Serving, training, export and resume of representative architectures; the page of all of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from art_local.testing.families import FAMILIES, make_family
from art_local.testing.survey import COLUMNS, survey

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
PACKED = ("Llama", "Qwen3 MoE", "GLM 4 MoE", "Phi-3, longrope", "Mistral Small 3.1")
IN_ROWS = ("Gemma 3, with vision", "gpt-oss", "Mistral, sliding window")
REFUSED = {
    "Falcon H1": "more than attention keys and values",
    "LFM 2": "'lfm2'",
    "BLOOM": "states no context length",
    "BERT": "the output head of BertLMHeadModel",
}


@pytest.mark.parametrize("family", [*PACKED, *IN_ROWS])
def test_log_probs_are_those_of_transformers_wherever_the_model_is_taken(family, tmp_path):
    found = survey(lambda: make_family(family), tmp_path)
    assert found.refusal is None
    assert found.faults == {}
    packed = set(COLUMNS) if family in PACKED else set(COLUMNS) - {"packed"}
    assert set(found.nats) == packed
    assert bool(found.in_rows) == (family in IN_ROWS)


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_served_is_refused_in_words(family, tmp_path):
    found = survey(lambda: make_family(family), tmp_path)
    assert REFUSED[family] in (found.refusal or "")


def test_an_engine_that_fails_is_a_refusal_that_names_the_architecture(tmp_path):
    def with_length():
        model = make_family("BLOOM")
        model.config.max_position_embeddings = 128
        return model

    found = survey(with_length, tmp_path)
    assert (found.refusal or "").startswith("the embedded engine cannot serve BloomForCausalLM")


def test_other_weights_are_a_fault(tmp_path):
    families = itertools.cycle(["Llama", "Mistral"])

    def changing():
        model = make_family(next(families))
        model.lm_head.weight.data.mul_(next(scales))
        return model

    scales = itertools.cycle([1.0, 2.0, 3.0])
    assert "served" in survey(changing, tmp_path).faults


def test_the_page_has_each_family():
    lines = PAGE.read_text().splitlines()
    listed = [line for line in lines if line.startswith(("| ", "- "))]
    for name in FAMILIES:
        assert any(line.startswith((f"| {name} |", f"- {name}: ")) for line in listed), name
