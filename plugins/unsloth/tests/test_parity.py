"""The same steps by the local backend and by Unsloth: the same losses, the same checkpoints."""

from __future__ import annotations

import asyncio
import json

import pytest
from safetensors.torch import load_file

import art_core as art
from art_core.testing.backend import attempts

pytestmark = pytest.mark.torch
OPTIONS = {"mask_truncated": False, "learning_rate": 1e-2}


def local(**options):
    return art.backend("local", device="cpu", lora_rank=4, lora_alpha=8, progress=False, **options)


async def trained(model, backend, groups, steps):
    """Train a model on the same groups again and again; return each step's metrics."""
    await model.register(backend)
    rows = [(await model.train(groups, **OPTIONS)).metrics for _ in range(steps)]
    await model.close()
    return rows


@pytest.fixture
async def groups(tiny_model):
    backend, model = local(dtype="bfloat16"), tiny_model("asks")
    await model.register(backend)
    found = [*(await attempts(model, (0.0, 1.0, 0.5))), *(await attempts(model, (1.0, 0.0)))]
    await model.close()
    await backend.close()
    return found


@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 1e-2), ("float32", 1e-5)])
async def test_losses_of_the_same_batch_are_those_of_the_local_backend(
    unsloth_backend, tiny_model, groups, dtype, apart
):
    ours, theirs = unsloth_backend(dtype=dtype), local(dtype=dtype)
    by_unsloth = await trained(tiny_model("by-unsloth"), ours, groups, 3)
    by_local = await trained(tiny_model("by-local"), theirs, groups, 3)
    await ours.close()
    await theirs.close()
    for key in ("loss/train", "loss/entropy", "loss/kl_k3", "loss/importance_ratio_mean"):
        got, wanted = ([row[key] for row in rows] for rows in (by_unsloth, by_local))
        assert got == pytest.approx(wanted, abs=apart), key
    # steps that learn: the third's loss is not the first's
    assert abs(by_local[2]["loss/train"] - by_local[0]["loss/train"]) > 10 * apart


@pytest.mark.parametrize("first", ["local", "unsloth"])
async def test_either_goes_on_from_the_others_checkpoint(
    unsloth_backend, tiny_model, groups, first
):
    backends = {"local": local, "unsloth": unsloth_backend}
    second = ({"local", "unsloth"} - {first}).pop()
    rows = {}
    for names in ((first, second), (first, first)):
        run = "-then-".join(names)
        for name in names:
            backend = backends[name](dtype="float32")
            (metrics,) = await trained(tiny_model(run), backend, groups, 1)
            await backend.close()
        rows[run] = metrics
        checkpoints = tiny_model(run).run_dir / "checkpoints"
        assert sorted(p.name for p in (checkpoints / "0002").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "manifest.json",
            "optimizer.safetensors",
            "rng.safetensors",
        ]
    mixed, alone = rows.values()
    assert mixed["loss/train"] == pytest.approx(alone["loss/train"], abs=1e-5)
    assert mixed["loss/grad_norm"] == pytest.approx(alone["loss/grad_norm"], rel=1e-3)


async def test_a_deterministic_answer_has_the_bits_of_the_local_backends(
    unsloth_backend, tiny_model
):
    found = {}
    for name, make in (("unsloth", unsloth_backend), ("local", local)):
        backend, model = make(dtype="float32", deterministic=True), tiny_model(name)
        await model.register(backend)
        alone = [await answer(model, seed) for seed in range(3)]
        together = await asyncio.gather(*(answer(model, seed) for seed in range(8)))
        assert together[:3] == alone
        found[name] = together
        await model.close()
        await backend.close()
    assert found["unsloth"] == found["local"]


async def answer(model, seed):
    """Tokens and log-probs of a seed, after a prompt whose length depends on it."""
    messages = [{"role": "user", "content": "word " * (seed + 1)}]
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, seed=seed, max_tokens=8, logprobs=True
    )
    choice = completion.choices[0]
    return choice.token_ids, [token.logprob for token in choice.logprobs.content]


async def test_experts_are_adapted_as_by_the_local_backend(unsloth_backend, tiny_experts):
    adapters = {}
    for name, make in (("unsloth", unsloth_backend), ("local", local)):
        backend, model = make(dtype="float32"), tiny_experts(name)
        await model.register(backend)
        groups = await attempts(model, (0.0, 1.0, 0.5))
        await model.train(groups, **OPTIONS)
        await model.close()
        await backend.close()
        stored = load_file(model.run_dir / "checkpoints" / "0001" / "adapter_model.safetensors")
        adapters[name] = {key: tensor.shape for key, tensor in stored.items()}
    assert adapters["unsloth"] == adapters["local"]
    assert any("mlp.experts" in key for key in adapters["local"])


async def test_a_checkpoint_over_a_quantized_base_is_refused(unsloth_backend, tiny_model, groups):
    backend, model = unsloth_backend(), tiny_model()
    await trained(model, backend, groups, 1)
    manifest = model.run_dir / "checkpoints" / "0001" / "manifest.json"
    stored = json.loads(manifest.read_text()) | {"quantization": "nf4"}
    manifest.write_text(json.dumps({k: v for k, v in stored.items() if k != "sha256"}))
    await backend.unregister(model)
    again = tiny_model()
    with pytest.raises(art.ConfigError, match="trained with quantization='nf4'.*asks for None"):
        await again.register(backend)
    await backend.close()
