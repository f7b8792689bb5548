"""Training again from stored attempts gives the bits of the run that they come from."""

from __future__ import annotations

from safetensors.torch import load_file

import art_core as art

STEPS = 4
OPTIONS = {"device": "cpu", "dtype": "float32", "lora_rank": 4, "progress": False}


async def trained(directory, runs):
    model = art.TrainableModel(
        name="agent", project="retrain", base_model=str(directory), base_path=runs, sinks=[]
    )
    backend = art.backend("local", **OPTIONS)
    await model.register(backend)
    client = model.openai_client()

    async def rollout(seed):
        messages = [{"role": "user", "content": "Say a word."}]
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=8, seed=seed
        )
        choice = answer.choices[0]
        share = sum(ord("a") <= token <= ord("z") for token in choice.token_ids) / 8
        return art.Trajectory(messages_and_choices=[*messages, choice], reward=share)

    for step in range(STEPS):
        group = await art.TrajectoryGroup(rollout(100 * step + seed) for seed in range(6))
        await model.train([group], learning_rate=1e-3, mask_truncated=False)
    for opened in (client, model, backend):
        await opened.close()
    return art.open_run(model.run_dir)


async def again(run, steps=None, **options):
    backend = art.backend("local", **OPTIONS)
    try:
        return await art.retrain(run, steps, backend=backend, **options)
    finally:
        await backend.close()


async def test_equal_options_give_equal_bits_and_others_do_not(tiny_directory, tmp_path):
    run = await trained(tiny_directory, tmp_path)
    same = await again(run, name="same")
    assert [s.metrics["loss/train"] for s in same.steps] == list(run.curve("loss/train").values())
    later = await again(run, [3, 4], name="later")
    other = await again(run, name="other", learning_rate=1e-2, loss_fn="ppo")
    for which, equal in ((same, True), (later, True), (other, False)):
        wanted = load_file(run.checkpoints()[STEPS] / "adapter_model.safetensors")
        found = load_file(which.run.checkpoints()[STEPS] / "adapter_model.safetensors")
        assert all(bool((found[name] == wanted[name]).all()) for name in wanted) is equal
    shares = [s.metrics["loss/effective_sample_size"] for s in other.steps]
    assert shares[0] > 0.99
    assert shares[-1] < shares[0]
