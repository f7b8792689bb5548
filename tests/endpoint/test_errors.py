"""Every way in which a request can be wrong, and the endpoint's error."""

from __future__ import annotations

import pickle

import httpx2
import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.errors import RequestError
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.request import NEUTRAL, PARAMETERS, TOKENIZER_OPTIONS, WITHOUT_EFFECT

TOOL = {"type": "function", "function": {"name": "f"}}
DEEP: dict = {}
for _ in range(101):
    DEEP = {"items": DEEP}
BAD_VALUES = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "robot"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "messages[0].tool_calls[0]"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": "all"}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": 1}, "stop"),
    ({"seed": "x"}, "seed"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": ["f"]}}]}, "tools[0].function.name"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"min_p": 2}, "min_p"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": True}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "any", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
     "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
     "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [3]}}},
     "tool_choice"),
    ({"response_format": 3}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
     "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}},
     "response_format"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
     "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
    ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "name"), BAD_VALUES, ids=[str(o)[:60] for o, _ in BAD_VALUES])
async def test_a_bad_value_is_refused_by_name(refused, options, name) -> None:
    status, error = await refused(**options)
    assert status == 400
    assert error["param"] == name and name in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 0.5},
        {"logit_bias": {"1": 2}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"structured_outputs": {"regex": "a+"}},
        {"min_p": 0.1},
        {"reasoning_effort": "low"},
        {"verbosity": "high"},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"tool_choice": "required", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [TOOL]},
        {"parallel_tool_calls": False, "tools": [TOOL]},
        {"top_k": 5},
    ],
)
async def test_what_cannot_be_honoured_is_refused_with_the_reason(refused, options) -> None:
    status, error = await refused(**options)
    assert status == 400 and error["code"] == "unsupported_parameter"
    assert error["param"] in options


@pytest.mark.parametrize("name", sorted(TOKENIZER_OPTIONS))
async def test_a_request_cannot_bring_a_template_or_arguments_of_the_tokenizer(
    refused, tokenizer, name
) -> None:
    status, error = await refused(chat_template_kwargs={name: "{% for i in range(9**9) %}"})
    assert (status, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == f"chat_template_kwargs.{name}"
    assert tokenizer.seen == []


async def test_a_call_in_the_form_before_tools_is_refused_and_not_left_out(refused) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}
    status, error = await refused(messages=[call])
    assert (status, error["code"]) == (400, "unsupported_parameter")
    assert error["message"] == "messages[0].function_call is not supported: use tool_calls"


def test_every_parameter_of_openais_client_is_kept_ignored_or_refused_with_a_reason() -> None:
    known = PARAMETERS | WITHOUT_EFFECT | NEUTRAL.keys()
    assert CompletionCreateParamsBase.__annotations__.keys() - known == set()


async def test_an_unknown_parameter_is_refused_with_the_nearest_known(refused) -> None:
    status, error = await refused(temprature=1)
    assert (status, error["code"]) == (400, "unknown_parameter")
    assert error["message"] == "unknown parameter 'temprature'. Did you mean 'temperature'?"
    assert (await refused(zzz=1))[1]["message"] == "unknown parameter 'zzz'."
    _, error = await refused(stream=True, stream_options={"includes": True})
    assert error["message"] == "unknown parameter 'stream_options.includes'"


async def test_an_unknown_model_is_a_404_that_names_the_known_ones(ask) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(model="agant")
    assert "no model 'agant'; served: agent, agent@7. Did you mean 'agent'?" in str(caught.value)


async def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(refused) -> None:
    status, error = await refused(messages=[{"role": "user", "content": "x" * 500}])
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "507 tokens" in error["message"] and "400" in error["message"]


async def test_messages_that_the_template_cannot_render_are_refused_with_its_reason(
    refused, ask
) -> None:
    for _ in range(2):
        status, error = await refused(messages=[{"role": "tool", "content": "1"}])
        assert status == 400 and "cannot begin with a tool" in error["message"]
        await ask()  # the tokenizer is known from then on


async def test_a_body_that_is_not_a_json_object_is_refused(http) -> None:
    for body in (b"{", b"[1]", b""):
        answer = await http.post("/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_json"


async def test_a_body_beyond_the_limit_is_refused(refused) -> None:
    status, error = await refused(messages=[{"role": "user", "content": "x" * 30_000}])
    assert (status, error["code"]) == (413, "body_too_large")


async def test_a_wrong_or_missing_key_is_refused(host) -> None:
    async with httpx2.AsyncClient(base_url=host.base_url) as stranger:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": host.api_key}):
            answer = await stranger.get("/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_health_needs_no_key_and_models_are_listed(host, client) -> None:
    async with httpx2.AsyncClient(base_url=host.base_url) as stranger:
        assert (await stranger.get(host.base_url.replace("/v1", "/health"))).json() == {
            "status": "ok"
        }
    assert [model.id async for model in client.models.list()] == ["agent", "agent@7"]
    assert (await client.models.retrieve("agent@7")).id == "agent@7"
    with pytest.raises(openai.NotFoundError, match="no model 'agent@8'; served: agent, agent@7"):
        await client.models.retrieve("agent@8")


async def test_an_unknown_path_is_answered_in_the_same_shape(http) -> None:
    answer = await http.post("/embeddings", json={})
    assert answer.status_code == 404
    assert "/v1/chat/completions" in answer.json()["error"]["message"]
    assert (await http.get("/chat/completions")).status_code == 405


async def test_a_doubled_version_in_the_path_is_explained(http) -> None:
    answer = await http.post("/v1/messages", json={})
    assert answer.status_code == 404
    assert "The base URL of an Anthropic client ends before /v1" in answer.text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_engine_is_a_503_with_the_reason(engine, ask, stream) -> None:
    engine.failure = EngineError("out of memory", "Lower max_batch_size")
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(stream=stream)
    assert caught.value.status_code == 503
    assert "out of memory. Lower max_batch_size" in str(caught.value)


async def test_an_unforeseen_error_is_a_500_that_names_it(engine, models, ask) -> None:
    engine.failure = ZeroDivisionError("oops")
    with pytest.raises(openai.InternalServerError, match="ZeroDivisionError: oops") as caught:
        await ask()
    assert caught.value.status_code == 500
    engine.failure = None
    models.engine = None
    with pytest.raises(openai.InternalServerError, match="AttributeError") as caught:
        await ask()
    assert caught.value.status_code == 500


async def test_an_art_error_while_weights_are_found_is_a_503(models, ask, monkeypatch) -> None:
    async def broken(name: str) -> None:
        raise ConfigError("no such checkpoint")

    monkeypatch.setattr(type(models), "resolve", lambda self, name: broken(name))
    with pytest.raises(openai.InternalServerError, match="no such checkpoint") as caught:
        await ask()
    assert caught.value.status_code == 503


async def test_a_failure_inside_a_stream_reaches_the_client_as_an_error(engine, ask) -> None:
    engine.failure, engine.fails_after = EngineError("the device is gone"), 1
    engine.pause_s = 0.02
    with pytest.raises(openai.APIError, match="the device is gone"):
        _ = [chunk async for chunk in await ask(stream=True)]


async def test_an_engine_that_never_says_why_it_ended_is_an_error(engine, ask) -> None:
    engine.ends = False
    with pytest.raises(openai.InternalServerError, match="without a finish reason"):
        await ask()


async def test_an_engine_that_is_too_slow_is_cancelled_and_answered_503(engine, ask) -> None:
    engine.pause_s = 30
    with pytest.raises(openai.InternalServerError, match="did not finish within 2 s"):
        await ask()
    assert engine.running == 0


async def test_weights_that_do_not_load_in_time_are_a_503(models, ask) -> None:
    models.delay_s = 30
    with pytest.raises(openai.InternalServerError, match="were not ready within 2 s"):
        await ask()


def test_request_errors_pickle_and_know_their_type() -> None:
    again = pickle.loads(pickle.dumps(RequestError(503, "gone", None, "engine_error")))
    assert (again.status, str(again)) == (503, "gone")
    assert again.body()["error"]["type"] == "service_unavailable"
    assert RequestError(500, "x").body()["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (409, "conflict_error", "conflict"),
        (418, "invalid_request_error", "invalid_value"),
        (599, "server_error", "internal_error"),
    ],
)
def test_an_error_without_a_code_has_that_of_its_status(status, kind, code) -> None:
    error = RequestError(status, "x").body()["error"]
    assert (error["type"], error["code"]) == (kind, code)


def test_a_host_is_made_with_a_key_that_cannot_be_guessed(models) -> None:
    keys = {EndpointHost(models).api_key for _ in range(3)}
    assert len(keys) == 3 and all(len(key) >= 40 for key in keys)
