"""Unsloth on a GPU: its kernels under the trainer, 4-bit weights, vLLM as the engine."""

from __future__ import annotations

import pytest

from art_core.testing.backend import attempts, tokens
from art_unsloth.backend import UnslothBackend
from art_unsloth.options import UnslothOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.timeout(900),
]
OPTIONS = {"mask_truncated": False, "learning_rate": 1e-3}
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def _a_gpu_with_vllm(installed):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from art_local.vllm.install import installed as vllm

    if vllm() is None:
        pytest.skip("vLLM is not installed: art engines install vllm")


@pytest.mark.parametrize("load_in_4bit", [False, True])
async def test_kernels_train_and_vllm_serves_what_they_learned(
    tiny_model, load_in_4bit, monkeypatch
):
    model = tiny_model()
    monkeypatch.setattr(model, "base_model", MODEL)
    # in a worker of its own: the other tests' imported Unsloth for a CPU, and see no vLLM
    given = {"fast_inference": True, "load_in_4bit": load_in_4bit, "progress": False}
    backend = UnslothBackend(UnslothOptions(device="cuda", lora_rank=4, lora_alpha=8, **given))
    await model.register(backend)
    groups = await attempts(model, (0.0, 1.0, 0.0, 1.0))
    result = await model.train(groups, **OPTIONS)
    assert result.metrics["loss/grad_norm"] > 0
    assert result.metrics["loss/engine_logprob_diff"] < 0.1
    assert (await tokens(model)).policy_version == 1
    await model.close()
    await backend.close()
