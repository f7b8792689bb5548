"""The worker process: how it starts, what comes back from it, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

import art_core as art
from art_core.testing.backend import attempts, tokens
from art_unsloth import backend as module
from art_unsloth import worker as worker_module
from art_unsloth.backend import _Meter
from art_unsloth.channel import Worker
from waiting import alive, until

pytestmark = pytest.mark.torch
OPTIONS = {"mask_truncated": False, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_in_4bit": True}, "load_in_4bit=True needs a CUDA device, and the backend trains"),
        ({"fast_inference": True}, "fast_inference=True needs a CUDA device"),
        ({"device": "cuda:9"}, "no device 'cuda:9'; here: cpu"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"max_seq_length": 0}, "context_length must be a whole number of at least 1"),
        ({"engine": "vlm"}, "no engine 'vlm'; known: auto, transformers, vllm"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_when_the_backend_is_made(
    unsloth_backend, options, said
):
    with pytest.raises(art.ConfigError, match=said):
        unsloth_backend(**options)


async def test_errors_of_the_worker_come_back_as_their_kinds(unsloth_backend, tiny_model, tmp_path):
    backend, model = unsloth_backend(), tiny_model()
    nowhere = art.TrainableModel(
        name="b", project="p", base_model="./none", base_path=tmp_path, sinks=[]
    )
    with pytest.raises(art.ConfigError, match=r"no base model at './none'"):
        await nowhere.register(backend)
    with pytest.raises(art.ConfigError, match=r"not registered.*Call await model.register"):
        await backend.step(model)
    await backend.close()
    with pytest.raises(art.BackendError, match="the unsloth backend is closed"):
        await backend.register(model)


async def test_a_function_that_is_an_object_cannot_be_sent(unsloth_backend, tiny_model):
    backend, model = unsloth_backend(), tiny_model()
    await model.register(backend)
    loss = art.LossSpec(name="mine", create=lambda: None, summary="mine")
    with pytest.raises(art.ConfigError, match="loss_fn is .* cannot be sent to the worker"):
        await backend.train(model, [], loss_fn=loss)
    with pytest.raises(art.ConfigError, match="a critic, which only backend 'local' trains"):
        await backend.train(model, [], advantage_baseline="value")
    advantages = art.AdvantageSpec(name="mine", create=lambda: None)
    with pytest.raises(art.ConfigError, match="advantage_fn is .* cannot be sent to the worker"):
        await backend.train(model, [], advantage_fn=advantages)
    await model.close()
    await backend.close()


LINGERING = """
    import time
    from pathlib import Path

    def linger(tokens):
        Path({begun!r}).touch()
        time.sleep(600)
"""


async def test_a_killed_worker_is_told_of_and_the_next_goes_on_from_the_checkpoint(
    unsloth_backend, tiny_model, tmp_path, monkeypatch
):
    begun = tmp_path / "begun"
    (tmp_path / "my_loss.py").write_text(textwrap.dedent(LINGERING.format(begun=str(begun))))
    monkeypatch.syspath_prepend(tmp_path)
    backend, model = unsloth_backend(), tiny_model()
    await model.register(backend)
    groups = await attempts(model, (0.0, 1.0))
    assert (await model.train(groups, **OPTIONS)).step == 1
    first = backend.worker_pid

    step = asyncio.create_task(model.train(groups, loss_fn="my_loss:linger", **OPTIONS))
    while not begun.exists():
        assert not step.done()
        await asyncio.sleep(0.02)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(art.BackendError) as caught:
        await step
    said = str(caught.value)
    assert "ended with exit code -9 (SIGKILL" in said
    assert "Unsloth" in said  # what the worker wrote last
    assert "Call await model.register(backend)" in said
    with pytest.raises(art.BackendError, match="exit code -9"):
        await backend.step(model)

    await model.register(backend)
    assert backend.worker_pid != first
    assert await backend.step(model) == 1
    assert (await tokens(model)).policy_version == 1
    assert (await model.train(groups, **OPTIONS)).step == 2
    await model.close()
    await backend.close()


def test_the_time_in_which_a_worker_died_is_charged_once(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    charges = []
    model = SimpleNamespace(charge=charges.append)
    meter = _Meter()
    meter.charge_rest(model)
    assert charges == []  # nothing was held yet
    meter.set_devices([art.GpuTime(device="NVIDIA H200", seconds=0.0, usd_per_hour=2.0)])
    meter.start()
    clock.now += 0.25
    meter.charge_rest(model)
    meter.charge_rest(model)
    (charge,) = charges
    assert charge.device == "NVIDIA H200" and charge.usd_per_hour == 2.0
    assert charge.seconds == 0.25


def test_closing_ends_the_process(installed):
    told = []
    worker = Worker(told.append)
    assert alive(worker.pid)
    worker.end()
    assert not alive(worker.pid)
    assert told == []


PARENT = """
    import sys, time
    from art_unsloth.channel import Worker
    worker = Worker(print)
    print(worker.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_parent_however_that_ends(installed, deadly):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.send_signal(deadly)
    parent.wait(10)
    parent.stdout.close()
    until(lambda: not alive(worker))


TRAINER = """
import os, sys, time
from art_unsloth.channel import Worker
worker = Worker(lambda message: None)
child = os.fork()
if not child:
    worker.end()  # is the parent's
    os.close(1); os.close(2); time.sleep(600)
print(worker.pid, child, flush=True)
time.sleep(600)
"""


def test_a_worker_ends_with_its_trainer_though_a_forked_child_lives():
    command = [sys.executable, "-W", "ignore", "-c", TRAINER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        worker, child = map(int, trainer.stdout.readline().split())
        try:
            assert alive(worker) and alive(child)
            trainer.kill()
            until(lambda: not alive(worker))
            assert alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_worker_whose_trainer_has_ended_ends_by_itself(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    worker_module.end_with(os.getppid() + 1)
    assert ended == [0]
