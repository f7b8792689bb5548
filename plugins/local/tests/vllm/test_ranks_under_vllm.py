"""Ranks train what vLLM serves: this process holds the adapter, and no weights of the base."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import art_core as art
from art_core.rl.config import TrainConfig
from art_local.session import endpoint

pytestmark = pytest.mark.ranks


async def test_ranks_train_what_vllm_serves(
    start, sequences, tiny_directory, tmp_path, monkeypatch
):
    # the server makes its log-probs up
    monkeypatch.setattr(endpoint, "TOLERANCES", dict.fromkeys(endpoint.TOLERANCES, 1e9))
    server = start().server.client
    key = server._http.headers["authorization"].removeprefix("Bearer ")
    backend = art.backend(
        "local", trainer_devices=["cpu", "cpu"], dtype="float32", engine="vllm",
        engine_url=server.url, engine_key=key, context_length=64, lora_rank=4, progress=False,
    )  # fmt: skip
    model = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path
    )
    await model.register(backend)
    (session,) = backend._sessions.values()
    assert session.policy.device.type == "meta"
    config = TrainConfig(learning_rate=1e-3)
    result = session._trained(lambda: session.trainer.step(sequences, config), config, {})
    adapter = load_file(result.checkpoint / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    assert len(list(result.checkpoint.glob("shard-*.safetensors"))) == 2
    await backend.close()

    # one process without a server continues from it
    alone = art.backend("local", device="cpu", dtype="float32", lora_rank=4, progress=False)
    again = art.TrainableModel(
        name="m", project="p", base_model=str(tiny_directory), base_path=tmp_path
    )
    await again.register(alone)
    (session,) = alone._sessions.values()
    assert session.step == 1
    for name, parameter in session.policy.trained().items():
        assert torch.equal(parameter.detach(), adapter[name])
    assert session.trainer.optimizer.state()
    await alone.close()
