"""Before the first rollout, an engine with another model than the trainer's is found."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import AutoTokenizer

from art_core.base.errors import EngineError
from art_local.engine import TransformersEngine
from art_local.models.load import load_model
from art_local.models.placement import placement
from art_local.session.endpoint import TEXT, check_agreement
from art_local.testing.tiny import save_tiny_model


@pytest.fixture
def engine_of():
    engines = []

    def made(directory, dtype=torch.float32):
        base = load_model(directory, placement("cpu", "float32"), dtype)
        engines.append(TransformersEngine(base))
        return engines[-1]

    yield made
    for engine in engines:
        asyncio.run(engine.close())


@pytest.fixture
def tokenizer(tiny_directory):
    return AutoTokenizer.from_pretrained(tiny_directory)


def test_the_same_model_agrees(engine_of, make_policy, tokenizer, tiny_directory):
    found = check_agreement(engine_of(tiny_directory), make_policy(), tokenizer, "base")
    assert found.tokens == 8
    assert found.mean <= found.largest <= 1e-4


def test_other_weights_of_the_same_shape_do_not(engine_of, make_policy, tokenizer, tmp_path):
    engine = engine_of(save_tiny_model(tmp_path / "other", seed=7))
    with pytest.raises(EngineError, match="'transformers' and the trainer do not have the same"):
        check_agreement(engine, make_policy(), tokenizer, "base")


@pytest.mark.parametrize(
    ("theirs", "said"),
    [(list(TEXT.encode()), "the vocabularies agree"), ([84, 1], "token 1 of a text is \\[1\\]")],
)
def test_the_error_tells_whether_the_vocabularies_differ(
    engine_of, make_policy, tokenizer, tmp_path, theirs, said
):
    engine = engine_of(save_tiny_model(tmp_path / "other", seed=7))
    engine.tokenize = lambda _: theirs
    with pytest.raises(EngineError, match=said):
        check_agreement(engine, make_policy(), tokenizer, "base")
