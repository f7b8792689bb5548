"""`train_sft` on the local backend: the loss falls, a kill is resumed, and rewards go on after."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")

import art_core as art
from art_local.backend import LocalBackend

pytestmark = pytest.mark.torch
WORDS = ("lamp", "river", "town", "cold")


def backend(**options):
    return LocalBackend(
        device="cpu", dtype="float32", progress=False, full_finetune=True, **options
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lessons.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": f"{w}!"}]}
        for w in WORDS * 3
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def make(tmp_path, tiny_directory):
    def model(name="m"):
        return art.TrainableModel(
            name=name, project="p", base_model=str(tiny_directory), base_path=tmp_path, sinks=[]
        )

    return model


async def asked(model, text):
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(),
        messages=[{"role": "user", "content": text}],
        max_tokens=8,
        temperature=0,
    )
    return completion.choices[0]


def losses(model):
    rows = art.LoggedRun(model.run_dir).rows(current=True)
    return [row.metrics["loss/train"] for row in rows]


async def test_the_loss_falls_the_model_answers_and_training_on_rewards_goes_on(make, file):
    model = make()
    async with model:
        await model.register(backend(gpu_cost_per_hour_usd=1.0))
        result = await model.train_sft(file, learning_rate=4e-3, batch_size=6, epochs=10)
        assert result.step == 20
        found = losses(model)
        assert len(found) == 20
        assert sum(found[-4:]) < 0.5 * sum(found[:4])
        row = model.run.history.last
        assert row.metrics["costs/gpu"] > 0
        assert row.metrics["data/cum/num_examples"] == 120
        # an answer has five or six letters and its end token
        assert row.metrics["data/cum/trainer_tokens"] == 30 * sum(len(w) + 2 for w in WORDS)
        choices = [await asked(model, "lamp") for _ in range(2)]
        group = art.TrajectoryGroup(
            art.Trajectory(
                messages_and_choices=[{"role": "user", "content": "lamp"}, choice], reward=reward
            )
            for choice, reward in zip(choices, (0.0, 1.0), strict=True)
        )
        result = await model.train([group], learning_rate=1e-4, mask_truncated=False)
        assert result.step == 21
        files = {path.name for path in result.checkpoint.iterdir()}
        assert {"optimizer.safetensors", "optimizer_sft.safetensors"} <= files
        await model.backend.close()


KILLED = """
    import asyncio, os, signal, sys
    import art_core as art
    from art_local.backend import LocalBackend

    class Dies(LocalBackend):
        async def train_sft(self, model, batches, **options):
            if await self.step(model) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return await super().train_sft(model, batches, **options)

    async def main(base_model, base_path, file):
        model = art.TrainableModel(
            name="killed", project="p", base_model=base_model, base_path=base_path, sinks=[]
        )
        options = {"dtype": "float32", "full_finetune": True, "deterministic": True}
        await model.register(Dies(device="cpu", progress=False, **options))
        await model.train_sft(file, learning_rate=1e-3, batch_size=4, epochs=2)

    asyncio.run(main(*sys.argv[1:]))
"""


def killed(*arguments):
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, arguments)],
        check=False,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()


def newest(model):
    """The bytes of the last checkpoint's weights and optimizer states."""
    folder = model.run_dir / "checkpoints" / "0006"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


async def test_a_kill_in_the_middle_of_an_epoch_changes_nothing(
    make, file, tiny_directory, tmp_path
):
    await asyncio.to_thread(killed, tiny_directory, tmp_path, file)
    for name in ("killed", "whole"):
        model = make(name)
        async with model:
            await model.register(backend(deterministic=True))
            result = await model.train_sft(file, learning_rate=1e-3, batch_size=4, epochs=2)
            assert result.step == 6
            await model.backend.close()
    one, other = losses(make("killed")), losses(make("whole"))
    assert one == other
    assert newest(make("killed")) == newest(make("whole"))


async def test_what_the_model_cannot_hold_is_named_before_anything_is_trained(make, file):
    with file.open("a") as out:
        long = [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "y"}]
        out.write(json.dumps({"messages": long}) + "\n")
    model = make()
    async with model:
        await model.register(backend())
        with pytest.raises(art.ConfigError, match=r"line 13: it has 200,0\d\d tokens.*holds 512"):
            await model.train_sft(file)
        assert await model.get_step() == 0
        result = await model.train_sft(file, batch_size=12, skip_invalid=True)
        assert result.step == 1
        await model.backend.close()


async def test_a_conversation_may_begin_with_the_assistant(make, file):
    said = [{"role": "assistant", "content": text} for text in ("Hi.", "yes")]
    messages = [said[0], {"role": "user", "content": "Is it wet?"}, said[1]]
    file.write_text(json.dumps({"messages": messages}) + "\n")
    model = make()
    async with model:
        await model.register(backend())
        result = await model.train_sft(file)
        # three letters each, and the token that ends a message
        assert result.metrics["data/step_trainer_tokens"] == 2 * (3 + 1)
        await model.backend.close()
