"""Serving, training, export and resume of representative architectures; the page of all of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from art_local.testing.families import FAMILIES, make_family
from art_local.testing.survey import COLUMNS, PROMPTS, survey

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
PACKED = ("Llama", "Qwen3 MoE", "GLM 4 MoE", "Phi-3, longrope", "Mistral Small 3.1")
IN_ROWS = ("Gemma 3, with vision", "gpt-oss", "Mistral, sliding window", "BLOOM", "LFM 2", "Zamba")
REFUSED = {
    "RWKV": "changes its own weights in a forward pass",
    "BERT": "BertLMHeadModel is no causal language model",
    "PaliGemma": "PaliGemmaForConditionalGeneration is no causal language model",
    "ModernBERT, decoder": "the output head of ModernBertDecoderForCausalLM",
    "DeepSeek V3.2": "with its indexed_attention",
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


def hooked(hook):
    """Return a maker of models whose forward pass calls a hook with its options before."""

    def make():
        model = make_family("Llama")
        model.model.register_forward_pre_hook(
            lambda _, args, options: hook(options), with_kwargs=True
        )
        return model

    return make


def test_a_model_that_trips_over_its_cache_is_served_without_one(tmp_path):
    def trips(options):
        if options.get("cache") or options.get("past_key_values"):
            raise RuntimeError("an odd cache")

    found = survey(hooked(trips), tmp_path)
    assert (found.refusal, found.state, found.faults) == (None, "whole texts", {})


def test_an_engine_that_fails_is_a_refusal_that_names_the_architecture(tmp_path):
    def trips(options):
        if options["input_ids"].shape[1] == max(PROMPTS):
            raise RuntimeError("an odd prompt")

    found = survey(hooked(trips), tmp_path)
    assert (found.refusal or "").startswith("the embedded engine cannot serve LlamaForCausalLM")


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
