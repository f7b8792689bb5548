"""transformers prints nothing while art-local loads a model."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def test_inside_the_block_no_bar_of_transformers_is_drawn_and_afterwards_all_are(capsys):
    import transformers.modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    from art_local.models.load import silence_logs

    for _ in range(2):
        with silence_logs(), silence_logs():
            for bar in (gguf.tqdm, logging.tqdm):
                assert list(bar(range(2), desc="weights")) == [0, 1]
    assert capsys.readouterr().err == ""
    list(gguf.tqdm(range(2), desc="weights"))
    assert "weights" in capsys.readouterr().err
