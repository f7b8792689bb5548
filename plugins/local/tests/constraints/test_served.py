"""Constrained answers and sampling options through the endpoint, on both engines: each recorded
log-prob is that of a softmax over the allowed tokens, computed here from the model's own logits.
"""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import art_core as art
from art_core.data.store import read_groups
from art_core.data.trajectory import tokens_of
from art_local.constraints.vocabulary import Vocabulary
from art_local.engine.sampling import unpacked
from art_local.vllm.install import environment_path, installed

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]
MISSING = f"vLLM is not installed in {environment_path()}: art engines install vllm"
VLLM = [pytest.mark.vllm, pytest.mark.skipif(installed() is None, reason=MISSING)]
HI = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"word": {"enum": ["yes", "no", "maybe"]}, "sure": {"type": "boolean"}},
    "required": ["word", "sure"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": PARAMETERS}}
TOOL = {"type": "function", "function": {"name": "answer", "parameters": PARAMETERS}}
NAMED = {"type": "function", "function": {"name": "answer"}}
ONCE = {"parallel_tool_calls": False}


@pytest_asyncio.fixture(
    loop_scope="module",
    scope="module",
    params=["transformers", pytest.param("vllm", marks=VLLM)],
)
async def model(request, tiny_directory, tmp_path_factory):
    """The tiny model in float32, served by one engine."""
    made = art.TrainableModel(
        name="tiny",
        project=request.param,
        base_model=str(tiny_directory),
        base_path=tmp_path_factory.mktemp("runs"),
        sinks=[],
    )
    backend = art.backend(
        "local",
        device="cpu",
        dtype="float32",
        engine=request.param,
        lora_rank=4,
        lora_alpha=8,
        progress=False,
    )
    try:
        await made.register(backend)
        yield made
    finally:
        await made.close()  # its clients first: vLLM's server ends without closing their sockets
        await backend.close()


async def ask(model, **options):
    request = {"seed": 3, "max_tokens": 250, **options}
    return await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=HI, **request
    )


@pytest.fixture(scope="module")
def expected(tiny_directory):
    """The log-probs of a choice's tokens by transformers, among those that its grammar allows."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_directory, dtype=torch.float32).eval()
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(tiny_directory), 260)

    def of(choice):
        turn = tokens_of(choice)
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids]])
        with torch.no_grad():
            logits_SV = lm(ids).logits[0, len(turn.prompt_ids) - 1 : -1]
        if turn.grammar is not None:
            bits = b"".join(vocabulary.masks(turn.grammar, turn.completion_ids))
            bits_SK = torch.frombuffer(bytearray(bits), dtype=torch.uint8).reshape(
                len(logits_SV), -1
            )
            logits_SV = logits_SV.masked_fill(~unpacked(bits_SK, 260), -torch.inf)
        return logits_SV.log_softmax(1)

    return of


def check(choice, expected):
    turn = tokens_of(choice)
    logprobs_SV = expected(choice)
    wanted = logprobs_SV.gather(1, torch.tensor(turn.completion_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(turn.logprobs), wanted, atol=1e-4, rtol=0)
    return logprobs_SV


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"response_format": SCHEMA},
        {"response_format": SCHEMA, "temperature": 0.7},
        {"tools": [TOOL], "tool_choice": NAMED, **ONCE},
        {"tools": [TOOL], "tool_choice": "required", **ONCE},
        {"tools": [TOOL], **ONCE, "max_tokens": 20},
        {"extra_body": {"structured_outputs": {"regex": "[a-f]{4}-\\d"}}},
        {"extra_body": {"structured_outputs": {"choice": ["one", "two"]}}},
        {"extra_body": {"structured_outputs": {"grammar": 'start: "a" b\nb: "c" | "d" b'}}},
        {"response_format": {"type": "json_object"}, "max_tokens": 12},
    ],
    ids=str,
)
async def test_recorded_log_probs_are_among_the_allowed_tokens(model, expected, options, stream):
    # openai's accumulator raises for an answer that was cut off
    if stream and options.get("max_tokens") != 20:
        client = model.openai_client()
        name = model.get_inference_name()
        request = {"seed": 3, "max_tokens": 250, **options}
        async with client.chat.completions.stream(model=name, messages=HI, **request) as events:
            answer = await events.get_final_completion()
    else:
        answer = await ask(model, **options)
    (choice,) = answer.choices
    check(choice, expected)
    assert tokens_of(choice).grammar
    if options.get("tool_choice"):
        (call,) = choice.message.tool_calls
        assert json.loads(call.function.arguments)["word"] in ("yes", "no", "maybe")
        assert choice.finish_reason == "tool_calls"
    elif options.get("response_format") == SCHEMA:
        assert json.loads(choice.message.content)["word"] in ("yes", "no", "maybe")
    elif options.get("max_tokens") == 12:
        assert choice.message.content[0] == "{"


async def test_an_unchanged_policy_has_a_ratio_of_1(model):
    async def rollout(index):
        kinds = [{"response_format": SCHEMA}, {"tools": [TOOL], "tool_choice": "required"}, {}]
        choice = (await ask(model, seed=index, **kinds[index % 3])).choices[0]
        return art.Trajectory(messages_and_choices=[*HI, choice], reward=float(index % 2))

    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup(rollout(i) for i in range(9))], pbar_desc=None
    )
    result = await model.train(
        groups, learning_rate=0.0 + 1e-30, mask_truncated=False, save_checkpoint=False
    )
    assert result.metrics["loss/importance_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["loss/importance_ratio_p99"] == pytest.approx(1.0, abs=1e-4)
    assert result.metrics["loss/engine_logprob_diff"] < 1e-4
    assert result.metrics["data/step_num_biased_choices"] == 0
    (stored,) = read_groups(model.run_dir / "trajectories" / "train" / "0001.jsonl")
    kept = [tokens_of(t.messages_and_choices[-1]).grammar for t in stored]
    assert [grammar is not None for grammar in kept] == [True, True, False] * 3


PROTOCOLS = {
    "chat/completions": {"messages": HI, "response_format": SCHEMA},
    "responses": {
        "input": "hi",
        "text": {"format": {"type": "json_schema", "name": "s", "schema": PARAMETERS}},
    },
    "messages": {
        "messages": HI,
        "max_tokens": 250,
        "output_format": {"type": "json_schema", "schema": PARAMETERS},
    },
    "completions": {
        "prompt": "hi",
        "max_tokens": 250,
        "structured_outputs": {"json": PARAMETERS},
    },
}
FORCED = {
    "chat/completions": {"messages": HI, "tools": [TOOL], "tool_choice": NAMED, **ONCE},
    "responses": {
        "input": "hi",
        "tools": [{"type": "function", "name": "answer", "parameters": PARAMETERS}],
        "tool_choice": "required",
        **ONCE,
    },
    "messages": {
        "messages": HI,
        "max_tokens": 250,
        "tools": [{"name": "answer", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    },
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [*PROTOCOLS.items(), *FORCED.items()], ids=lambda value: str(value)[:20]
)
async def test_every_protocol_constrains_and_records(model, expected, path, body, stream):
    trajectory = art.Trajectory()
    with model.recording(trajectory) as endpoint:
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        asked = {"model": endpoint.model_name, "seed": 2, **body}
        async with httpx2.AsyncClient(timeout=60) as http:
            answer = await http.post(
                f"{endpoint.base_url}/{path}",
                json=asked | ({"stream": True} if stream else {}),
                headers=headers,
            )
    assert answer.status_code == 200, answer.text
    (choice,) = [item for item in trajectory.messages_and_choices if not isinstance(item, dict)]
    check(choice, expected)
    calls = choice.message.tool_calls
    text = calls[0].function.arguments if calls else choice.message.content
    assert json.loads(text)["word"] in ("yes", "no", "maybe")


async def test_a_schema_that_max_tokens_cannot_meet_ends_with_length_and_is_trained(
    model, expected
):
    choice = (await ask(model, response_format=SCHEMA, max_tokens=5)).choices[0]
    assert choice.finish_reason == "length"
    check(choice, expected)
    assert len(tokens_of(choice).completion_ids) == 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
         'Unimplemented keys: \\["not"\\]'),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "unclosed group"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}},
         "one of the tools"),
    ],
)  # fmt: skip
async def test_a_constraint_that_is_invalid_is_refused_before_sampling(model, options, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        await ask(model, **options)


async def test_a_bias_moves_the_draw_and_not_the_log_probs(model, expected):
    biases = {str(token): 100 for token in b"q"}
    choice = (await ask(model, logit_bias=biases, max_tokens=5)).choices[0]
    assert choice.message.content == "qqqqq"
    check(choice, expected)
    assert tokens_of(choice).biased
    greedy = (await ask(model, logit_bias={"113": -100}, temperature=0, max_tokens=9)).choices[0]
    check(greedy, expected)
    held = (
        await ask(
            model,
            logit_bias={"98": -100},
            max_tokens=4,
            extra_body={"structured_outputs": {"regex": "[ab]{9}"}},
        )
    ).choices[0]
    assert held.message.content == "aaaa"
    check(held, expected)


async def test_min_p_of_1_leaves_the_most_probable_token(model, expected):
    choice = (await ask(model, max_tokens=8, extra_body={"min_p": 1.0})).choices[0]
    logprobs_SV = check(choice, expected)
    assert logprobs_SV.argmax(1).tolist() == [*tokens_of(choice).completion_ids]
    assert tokens_of(choice).biased


async def test_choices_seeds_and_stops_are_the_same_on_every_engine(model, expected):
    three = (await ask(model, n=3, max_tokens=6)).choices
    one = (await ask(model, max_tokens=6)).choices
    assert tokens_of(three[0]).completion_ids == tokens_of(one[0]).completion_ids
    assert len({tokens_of(choice).completion_ids for choice in three}) == 3
    stops = {"extra_body": {"structured_outputs": {"regex": "[ab]{40}"}}, "stop": ["ba", "bb"]}
    choice = (await ask(model, **stops)).choices[0]
    assert choice.finish_reason == "stop" and choice.stop_reason in ("ba", "bb")
    assert "b" not in choice.message.content
    check(choice, expected)
