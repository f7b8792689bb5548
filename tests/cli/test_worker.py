"""`art worker`, with a gateway of this process."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

import art_core as art
from art_core.cli.main import main
from art_core.queue.queue import AttemptQueue
from art_core.queue.values import Scenario
from art_core.testing.echo import EchoBackend
from queued import scenarios

AGENT = """
import asyncio, os, signal

import art_core as art

@art.track_api_cost(
    source="judge", provider="openai", model_name="gpt-4.1",
    prompt_per_million=1000.0, completion_per_million=0.0,
)
def judged():
    return {"usage": {"prompt_tokens": 1000, "completion_tokens": 1}}

async def rollout(model, scenario):
    judged()
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "yes"}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages()
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = float(completion.choices[0].message.content == "yes")
    return trajectory

async def interrupting(model, scenario):
    for _ in range(scenario["question"]):
        await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.1 if scenario["question"] == 1 else 600)
    return art.Trajectory(reward=1.0)
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a queue of a model of the echo; return the model, the queue and the gateway."""
    (tmp_path / "queue_agent.py").write_text(AGENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    backend = EchoBackend()
    model = art.TrainableModel(
        name="m", project="p", base_model="b", base_path=tmp_path, sinks=[], backend=backend
    )
    with asyncio.Runner() as runner:
        runner.run(model.register())
        queue = AttemptQueue.open(model.run_dir, step=0)
        gateway = model.gateway(queue=queue).start()
        yield runner, queue, gateway
        gateway.stop()
        queue.close()
        runner.run(model.close())
        runner.run(backend.close())


def test_a_worker_makes_the_attempts_of_a_run(served, capsys):
    runner, queue, gateway = served
    runner.run(queue.fill(scenarios(2), size=2, last=True))
    words = ["worker", "queue_agent:rollout", "--server", gateway.url, "--key", gateway.api_key]

    async def train():
        batch = await queue.take(2, 2, step=0)
        await queue.commit(batch.cursor)
        return batch

    trainer = threading.Thread(target=lambda: batches.append(asyncio.run(train())))
    batches = []
    trainer.start()
    assert main([*words, "--name", "one"]) == 0
    trainer.join()
    assert capsys.readouterr().out == "one: 4 accepted\n"
    assert [group.rewards for group in batches[0].groups] == [[1.0, 1.0]] * 2
    assert [each.quote() for each in batches[0].paid] == [1.0] * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["queue_agent:rollout", "--concurrent", "0", "--key", "k"], "must be at least 1, got 0"),
        (["queue_agent:rollout"], "the gateway's key is missing"),
        (["queue_agent:other", "--key", "k"], "can't be imported"),
        (["queue_agent:rollout", "--key", "k"], "refuses to lease: wrong or missing API key"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(served, capsys, monkeypatch, words, message):
    monkeypatch.delenv("ART_GATEWAY_KEY", raising=False)
    _, _, gateway = served
    assert main(["worker", *words, "--server", gateway.url]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_attempts_and_a_second_one_gives_them_back(served, capsys, times):
    runner, queue, gateway = served
    runner.run(queue.fill([scenario_of(times), scenario_of(times, 1)], size=1))
    words = ["queue_agent:interrupting", "--server", gateway.url, "--key", gateway.api_key]
    assert main(["worker", *words, "--name", "one", "--concurrent", "1"]) == 0
    printed = capsys.readouterr()
    counts = runner.run(queue.counts())
    assert "no more leases" in printed.err
    if times == 1:
        assert printed.out == "one: 1 accepted\n"
        assert (counts.ready, counts.leased, counts.waiting) == (1, 0, 1)
    else:
        assert printed.out == "one: no attempts\n"
        assert (counts.leased, counts.waiting) == (0, 2)


def scenario_of(times, index=0):
    return Scenario(epoch=0, index=index, value={"question": times})
