"""A teacher of distillation that the real vLLM serves. One server for all."""

from __future__ import annotations

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import art_core as art
from art_core.client.openai_client import openai_client
from art_core.client.scorer import FORMS, Scorer
from art_core.data.trajectory import tokens_of
from art_local.testing.tiny import save_tiny_model
from art_local.testing.vllm_server import lora_server
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
ASK = [{"role": "user", "content": "Name a letter."}]
LEARN = {"learning_rate": 1e-3, "mask_truncated": False, "save_checkpoint": False}
RULES = [{"role": "system", "content": "Be short."}, *ASK]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Another model with the student's vocabulary."""
    return save_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", seed=1, context_length=2048)


@pytest.fixture(scope="module")
def address(directory):
    log_file = directory.parent / "vllm.log"
    with lora_server(installed(), directory, log_file=log_file, dtype="float32", env={}) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def exact(directory):
    """Log-probs of a text's tokens but the first, by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def score(ids):
        with torch.no_grad():
            logprobs_SV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return logprobs_SV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()

    return score


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def student(tiny_directory, tmp_path_factory):
    made = art.TrainableModel(
        name="student",
        project="vllm",
        base_model=str(tiny_directory),
        base_path=tmp_path_factory.mktemp("runs"),
        sinks=[],
    )
    backend = art.backend("local", device="cpu", dtype="float32", lora_rank=4, progress=False)
    await made.register(backend)
    yield made
    await backend.close()
    await made.close()


async def sampled(student):
    async def rollout(seed):
        answer = await student.openai_client().chat.completions.create(
            model=student.get_inference_name(), messages=ASK, max_tokens=12, seed=seed
        )
        return art.Trajectory(messages_and_choices=[*ASK, answer.choices[0]], reward=0.0)

    return await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(seed) for seed in range(4))], pbar_desc=None
    )


def answers(groups):
    return [tokens_of(t.messages_and_choices[-1]) for group in groups for t in group]


@pytest.mark.parametrize("form", FORMS)
async def test_each_form_gives_the_log_probs_of_transformers(address, exact, form):
    ids = [*b"The 3 letters after 12 are x, y and z.", 258, 10, 257, *"é".encode()]
    endpoint = art.Endpoint(base_url=address, api_key="none", model_name="base")
    async with openai_client(endpoint, trainable=False) as client:
        found = await Scorer(client=client, model="base", form=form).score(ids)
    assert found.logprobs[1:] == pytest.approx(exact(ids), abs=1e-3)


async def test_a_step_learns_from_the_scores_and_pays_for_each_token(student, address, exact):
    student.metrics_builder().register_model_pricing(
        "base", prompt_per_million=1e6, completion_per_million=0.0
    )
    teacher = await art.teacher(student, "base", base_url=address)
    await student.train(await sampled(student), teacher=teacher, **LEARN)  # pays for the check
    groups = await sampled(student)
    result = await student.train(groups, teacher=teacher, **LEARN)
    differences = []
    for tokens in answers(groups):
        ids = [*tokens.prompt_ids, *tokens.completion_ids]
        scores = exact(ids)[len(tokens.prompt_ids) - 1 :]
        assert tokens.teacher_logprobs == pytest.approx(scores, abs=1e-3)
        differences += [p - q for p, q in zip(tokens.logprobs, scores, strict=True)]
    mean = sum(differences) / len(differences)
    assert result.metrics["loss/teacher_kl"] == pytest.approx(mean, abs=1e-3)
    paid = student.run.history.last.metrics["costs/train/teacher/base"]
    assert paid == sum(map(len, {t.prompt_ids + t.completion_ids for t in answers(groups)}))


async def test_a_prompted_teacher_scores_the_answer_behind_its_own_prompt(
    student, address, directory, exact
):
    teacher = await art.teacher(student, "base", base_url=address, messages=lambda _: RULES)
    groups = await sampled(student)
    await teacher.score(groups)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(RULES, add_generation_prompt=True, return_dict=False)
    for tokens in answers(groups):
        scores = exact([*prompt, *tokens.completion_ids])[len(prompt) - 1 :]
        assert tokens.teacher_logprobs == pytest.approx(scores, abs=1e-3)
