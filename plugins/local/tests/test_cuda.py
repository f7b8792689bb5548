"""A run on a GPU: packed rows by the compiled kernel, and either engine."""

from __future__ import annotations

import pytest

import art_core as art
from art_core.testing.backend import attempts, tokens
from art_local.vllm.install import installed

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
OPTIONS = {"mask_truncated": False, "learning_rate": 1e-2}


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=[pytest.mark.vllm])])
async def test_a_run_learns_and_serves_what_it_learned(tiny_directory, tmp_path, caplog, engine):
    if engine == "vllm" and getattr(installed(), "variant", None) != "cuda":
        pytest.skip("vLLM for CUDA is not installed: art engines install vllm")
    backend = art.backend("local", device="cuda", engine=engine, progress=False)
    model = art.TrainableModel(
        name="tiny", project="cuda", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    for step in (1, 2):
        groups = await attempts(model, (0.0, 1.0, 0.0, 1.0))
        result = await model.train(groups, **OPTIONS)
        assert result.metrics["loss/grad_norm"] > 0
        assert result.metrics["loss/engine_logprob_diff"] < 0.1
        assert (await tokens(model)).policy_version == step
    assert "is trained in padded rows" not in caplog.text
    await model.close()
    await backend.close()
