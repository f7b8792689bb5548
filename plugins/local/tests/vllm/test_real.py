"""The real vLLM: a run trained with it, its server killed, its core stopped. One server for all."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import openai
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

import art_core as art
from art_core.data.trajectory import tokens_of
from art_local.vllm.install import environment_path, installed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        installed() is None,
        reason=f"vLLM is not installed in {environment_path()}: art engines install vllm",
    ),
]
QUESTION = [{"role": "user", "content": "go"}]
LEARN = {"learning_rate": 0.05, "mask_truncated": False}
STALL_S = 8.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def model(tiny_directory, tmp_path_factory):
    """The tiny model in float32, registered with a backend whose engine is vLLM."""
    made = art.TrainableModel(
        name="tiny",
        project="vllm",
        base_model=str(tiny_directory),
        base_path=tmp_path_factory.mktemp("runs"),
        sinks=[],
    )
    backend = art.backend(
        "local",
        device="cpu",
        dtype="float32",
        engine="vllm",
        lora_rank=4,
        lora_alpha=8,
        served_steps=3,
        request_timeout_s=60.0,
        engine_timeouts={"stall_s": STALL_S, "backoff_s": 0.1},
        progress=False,
    )
    try:
        await made.register(backend)
        yield made
    finally:
        await backend.close()
        await made.close()


async def ask(model, name=None, **options):
    request = {"seed": 3, "max_tokens": 6, **options}
    return await model.openai_client().chat.completions.create(
        model=name or model.get_inference_name(), messages=QUESTION, **request
    )


async def some_groups(model, **options):
    async def rollout(index):
        choice = (await ask(model, seed=index, **options)).choices[0]
        return art.Trajectory(messages_and_choices=[*QUESTION, choice], reward=float(index % 2))

    return await art.gather_trajectory_groups(
        art.TrajectoryGroup(rollout(4 * g + i) for i in range(4)) for g in range(2)
    )


def logprobs(completion):
    return [token.logprob for token in completion.choices[0].logprobs.content]


def family(log_file: Path) -> list[int]:
    """The ids of the processes whose output goes to that log file, oldest first."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and (process / "fd" / "1").samefile(log_file):
                # ids wrap around; a process's start is the 22nd field, the 20th after its name
                started = int((process / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(process.name)))
        except OSError:
            continue
    return [pid for _, pid in sorted(found)]


async def test_trainer_and_engine_agree_on_log_probs_before_and_after_steps(model):
    for step in (1, 2, 3):
        result = await model.train(await some_groups(model), save_checkpoint=step == 1, **LEARN)
        assert result.step == step
        assert result.metrics["loss/engine_logprob_diff"] <= 1e-4
        assert result.metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-3)
        assert result.metrics["throughput/engine_restarts"] == 0
        assert result.metrics["throughput/engine_generation_tok_per_s"] > 0


async def test_steps_are_served_by_name_also_those_without_a_checkpoint(model):
    answers = {name: await ask(model, name) for name in ("tiny@0", "tiny@1", "tiny@2", "tiny@3")}
    told = [answer.choices[0].policy_version for answer in answers.values()]
    assert told == [0, 1, 2, 3]
    assert len({tuple(logprobs(answer)) for answer in answers.values()}) == 4
    base = await ask(model, model.base_model)
    assert logprobs(base) == pytest.approx(logprobs(answers["tiny@0"]), abs=1e-4)


async def test_a_step_that_teaches_gives_the_log_probs_of_transformers(model, tiny_directory):
    teacher = await art.teacher(model, step=0)
    groups = await some_groups(model, max_tokens=12)
    await teacher.score(groups)
    exact = AutoModelForCausalLM.from_pretrained(tiny_directory, dtype=torch.float32).eval()
    for trajectory in groups[0]:
        tokens = tokens_of(trajectory.messages_and_choices[-1])
        ids = torch.tensor([*tokens.prompt_ids, *tokens.completion_ids])
        with torch.no_grad():
            logprobs_SV = exact(ids[None]).logits[0, :-1].log_softmax(-1)
        scores = logprobs_SV.gather(1, ids[1:, None])[len(tokens.prompt_ids) - 1 :, 0]
        assert tokens.teacher_logprobs == pytest.approx(scores.tolist(), abs=1e-3)


async def test_base_and_adapters_in_one_batch_answer_as_they_do_alone(model):
    names = ["tiny@0", "tiny@1", "tiny@3"]
    alone = [await ask(model, name, max_tokens=16) for name in names]
    together = await asyncio.gather(*(ask(model, name, max_tokens=16) for name in names * 4))
    for index, answer in enumerate(together):
        assert logprobs(answer) == pytest.approx(logprobs(alone[index % 3]), abs=1e-3)


async def test_a_seed_and_a_stop_string_are_kept(model):
    one, two = [await ask(model, seed=7, max_tokens=12) for _ in range(2)]
    assert one.choices[0].token_ids == two.choices[0].token_ids
    text = one.choices[0].message.content
    cut = await ask(model, seed=7, max_tokens=12, stop=[text[3:5]])
    assert cut.choices[0].message.content == text[: text.index(text[3:5])]
    assert cut.choices[0].finish_reason == "stop"


async def test_seeded_requests_that_are_too_many_for_one_batch_are_all_answered(model):
    """Of 7,000 prompt tokens together, vLLM computes some prompts in parts."""
    before = family(model.run_dir / "vllm.log")

    async def answer(seed):
        question = [{"role": "user", "content": f"{seed:03d} " + "word " * 28}]
        return await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=question, seed=seed, max_tokens=6
        )

    answers = await asyncio.gather(*map(answer, range(48)))
    assert min(a.usage.prompt_tokens for a in answers) * len(answers) > 6_000
    again = await answer(7)
    assert again.choices[0].token_ids == answers[7].choices[0].token_ids
    assert family(model.run_dir / "vllm.log") == before


async def long_seed(model):
    """A seed whose answer does not end before it is cut off."""
    for seed in range(100):
        if (await ask(model, seed=seed, max_tokens=400)).choices[0].finish_reason == "length":
            return seed
    raise AssertionError("every answer ends early")


async def failing(model, **options):
    """Why a request fails whose client does not try again."""
    client = model.openai_client().with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(
            model=model.get_inference_name(), messages=QUESTION, max_tokens=400, **options
        )
    return str(caught.value)


@pytest.mark.slow
async def test_a_server_that_is_killed_in_mid_rollout_fails_requests_and_the_step_goes_on(model):
    pids = family(model.run_dir / "vllm.log")
    seed, before = await long_seed(model), await model.get_step()
    rollouts = asyncio.create_task(some_groups(model, max_tokens=400))
    single = asyncio.create_task(failing(model, seed=seed))
    await asyncio.sleep(0.3)
    os.kill(pids[0], signal.SIGKILL)
    assert "vLLM's server failed: it ended with status 9" in await single
    # the client of a rollout tries again, and finds the next server
    result = await model.train(await rollouts, **LEARN)
    assert result.step == before + 1
    assert result.metrics["throughput/engine_restarts"] == 1
    assert result.metrics["loss/engine_logprob_diff"] <= 1e-4
    assert not set(pids) & set(family(model.run_dir / "vllm.log"))


@pytest.mark.slow
async def test_a_core_that_hangs_is_found_and_replaced(model):
    pids = family(model.run_dir / "vllm.log")
    single = asyncio.create_task(failing(model, seed=await long_seed(model)))
    await asyncio.sleep(0.3)
    for pid in pids[1:]:
        os.kill(pid, signal.SIGSTOP)  # the server's front still answers
    assert f"requests ran for {STALL_S:g} s without a token" in await single
    assert logprobs(await ask(model))
