"""Unsloth on a GPU: its kernels under the trainer, 4-bit weights, vLLM as the engine."""

from __future__ import annotations

import pytest

from art_core.testing.backend import attempts, tokens

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.torch]
OPTIONS = {"mask_truncated": False, "learning_rate": 1e-3}
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def _a_gpu_with_vllm(installed):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from art_local.vllm.environment import installed as vllm

    if vllm() is None:
        pytest.skip("vLLM is not installed: art engines install vllm")


@pytest.mark.parametrize("load_in_4bit", [False, True])
async def test_kernels_train_and_vllm_serves_what_they_learned(
    unsloth_backend, tiny_model, load_in_4bit, monkeypatch
):
    model = tiny_model()
    monkeypatch.setattr(model, "base_model", MODEL)
    backend = unsloth_backend(device="cuda", fast_inference=True, load_in_4bit=load_in_4bit)
    await model.register(backend)
    groups = await attempts(model, (0.0, 1.0, 0.0, 1.0))
    result = await model.train(groups, **OPTIONS)
    assert result.metrics["loss/grad_norm"] > 0
    assert result.metrics["loss/engine_logprob_diff"] < 0.1
    assert (await tokens(model)).policy_version == 1
    await model.close()
    await backend.close()
