"""Agents of other protocols are recorded as agents of chat completions are."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from scripted import END, ByteTokenizer, OneModel, ScriptedEngine

import art_core as art
from art_core.base.errors import EngineError
from art_core.client.recorder import Recorder, Recording
from art_core.data.trajectory import tokens_of
from art_core.endpoint.host import EndpointHost
from waiting import until_async

BODIES = {
    "/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/responses": {"input": "hi"},
    "/messages": {"max_tokens": 200, "messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi"},
}
TOOL = {"type": "object"}


@pytest.fixture(scope="module")
def served():
    models = OneModel(ScriptedEngine(), ByteTokenizer())
    with EndpointHost(models) as host:
        endpoint = art.Endpoint(base_url=host.base_url, api_key=host.api_key, model_name="agent")
        with Recorder(endpoint, trainable=True) as recorder:
            yield models, recorder


@pytest.fixture
def engine(served):
    served[0].engine = ScriptedEngine()
    return served[0].engine


@pytest.fixture
def recorder(served):
    return served[1]


async def post(endpoint, path, **more):
    body = {"model": "agent", **BODIES[path], **more}
    async with httpx2.AsyncClient(base_url=endpoint.base_url, timeout=20) as http:
        return await http.post(path, json=body, headers={"x-api-key": endpoint.api_key})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_is_recorded_with_the_engines_tokens(engine, recorder, path, stream):
    engine.lines = ["<think>hm</think>hello"]
    trajectory = art.Trajectory()
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        answer = await post(endpoint, path, stream=stream)
    assert answer.status_code == 200
    asks_for_tokens = path == "/chat/completions"
    assert ("token_ids" in answer.text) is asks_for_tokens
    message, choice = trajectory.messages_and_choices
    assert message == {"role": "user", "content": "hi"}
    tokens = tokens_of(choice)
    sampled = [*b"<think>hm</think>hello", END][: engine.asked[0][1].max_tokens]
    assert (list(tokens.prompt_ids), list(tokens.completion_ids)) == (engine.asked[0][0], sampled)
    assert (set(tokens.logprobs), choice.policy_version) == ({-0.5}, 7)


@pytest.mark.parametrize("path", ["/responses", "/messages"])
async def test_turns_with_tools_are_one_conversation(engine, recorder, path):
    engine.lines = ['<think>hm</think><tool_call>{"name": "f", "arguments": {}}</tool_call>', "so"]
    trajectory = art.Trajectory()
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        if path == "/responses":
            tools = [{"type": "function", "name": "f", "parameters": TOOL}]
            first = (await post(endpoint, path, tools=tools)).json()
            given = [{"role": "user", "content": "hi"}, *first["output"]]
            given += [{"type": "function_call_output", "call_id": first["output"][-1]["call_id"],
                       "output": "7"}]  # fmt: skip
            await post(endpoint, path, tools=tools, input=given)
        else:
            tools = [{"name": "f", "input_schema": TOOL}]
            first = (await post(endpoint, path, tools=tools)).json()
            result = {"type": "tool_result", "tool_use_id": first["content"][-1]["id"],
                      "content": "7"}  # fmt: skip
            given = [*BODIES[path]["messages"], {"role": "assistant", "content": first["content"]}]
            given += [{"role": "user", "content": [result]}]
            await post(endpoint, path, tools=tools, messages=given)
    assert [m["role"] for m in trajectory.messages()] == ["user", "assistant", "tool", "assistant"]
    assert (trajectory.additional_histories, trajectory.tools[0]["function"]["name"]) == ([], "f")


async def test_a_previous_response_belongs_to_its_attempt(engine, recorder):
    trajectory = art.Trajectory()
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        first = (await post(endpoint, "/responses")).json()
        again = await post(endpoint, "/responses", input="on", previous_response_id=first["id"])
        assert again.status_code == 200
        async with httpx2.AsyncClient(headers={"x-api-key": endpoint.api_key}) as http:
            kept = await http.get(f"{endpoint.base_url}/responses/{first['id']}")
        assert kept.json() == first
        with recorder.recorded(Recording(trajectory=art.Trajectory())) as another:
            unknown = await post(another, "/responses", previous_response_id=first["id"])
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "previous_response_not_found"
    assert [m["content"] for m in trajectory.messages()] == ["hi", "ok", "on", "ok"]


@pytest.mark.parametrize("path", BODIES)
async def test_a_key_is_valid_for_its_attempt_only(engine, recorder, path):
    trajectory = art.Trajectory()
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        pass
    late = await post(endpoint, path)
    kind = late.json()["error"]["type"]
    assert (late.status_code, kind) == (401, "authentication_error")
    assert "a key is valid only inside its `with` block" in late.text
    assert trajectory.messages_and_choices == []


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_fails_is_an_error_and_not_recorded(engine, recorder, path):
    engine.failure, engine.fails_after = EngineError("it died"), 1
    trajectory = art.Trajectory()
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        answer = await post(endpoint, path, stream=True)
    assert "it died" in answer.text.strip().split("\n\n")[-1]
    assert trajectory.messages_and_choices == []


@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_a_stream_frees_the_engine(engine, recorder, path):
    engine.lines, engine.pause_s = ["hello" * 20], 0.5
    trajectory = art.Trajectory()
    body = {"model": "agent", **BODIES[path], "stream": True}
    with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
        headers = {"x-api-key": endpoint.api_key}
        async with (
            httpx2.AsyncClient(base_url=endpoint.base_url, headers=headers) as http,
            http.stream("POST", path, json=body) as answer,
        ):
            await anext(answer.aiter_bytes())
            assert engine.running == 1
        await until_async(lambda: engine.running == 0)
    assert (engine.cancelled, trajectory.messages_and_choices) == (1, [])


async def test_forced_forms_are_left_out_of_unconstrained_recordings(engine, recorder):
    recording = Recording(trajectory=art.Trajectory(), unconstrained=True)
    with recorder.recorded(recording) as endpoint:
        tools = [{"name": "f", "input_schema": TOOL}]
        forced = await post(endpoint, "/messages", tools=tools, tool_choice={"type": "any"})
        form = {"format": {"type": "json_schema", "name": "a", "schema": TOOL}}
        schema = await post(endpoint, "/responses", text=form)
    assert (forced.status_code, schema.status_code) == (200, 200)


async def count(endpoint, **more):
    body = {"model": "agent", "messages": BODIES["/messages"]["messages"], **more}
    headers = {"x-api-key": endpoint.api_key, "anthropic-version": "2023-06-01"}
    async with httpx2.AsyncClient(base_url=endpoint.base_url, headers=headers) as http:
        return await http.post("/messages/count_tokens", json=body)


async def test_tokens_are_counted_by_the_served_model(engine, recorder):
    with recorder.recorded(Recording(trajectory=art.Trajectory())) as endpoint:
        counted = (await count(endpoint)).json()
        forced = await count(endpoint, tool_choice={"type": "any"})
        usage = (await post(endpoint, "/messages")).json()["usage"]
    assert counted == {"input_tokens": usage["input_tokens"]}
    assert (forced.status_code, forced.json()["type"]) == (400, "error")
    recording = Recording(trajectory=art.Trajectory(), unconstrained=True)
    with recorder.recorded(recording) as endpoint:
        assert (await count(endpoint, tool_choice={"type": "any"})).status_code == 200


@contextmanager
def upstream(status, body, kind="application/json", **headers):
    """Record at a server that gives one answer."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            for name, value in {"content_type": kind, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    endpoint = art.Endpoint(base_url=url, api_key="k", model_name="agent")
    with (
        Recorder(endpoint, trainable=False) as recorder,
        recorder.recorded(Recording(trajectory=art.Trajectory())) as recorded,
    ):
        yield recorded, asked
        server.shutdown()
        server.server_close()


async def test_a_refusal_of_the_served_model_has_the_protocols_form():
    with upstream(429, b"slow down", "text/plain", retry_after="7") as (endpoint, asked):
        answer = await post(endpoint, "/messages")
        counted = await count(endpoint)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    expected = {"type": "rate_limit_error", "message": "slow down"}
    assert (answer.json()["error"], counted.status_code) == (expected, 429)
    assert not any(name.lower().startswith(("anthropic", "x-api")) for name in asked[-1][0])
    error = {"message": "max_completion_tokens is odd", "param": "max_completion_tokens"}
    with upstream(400, json.dumps({"error": error}).encode()) as (endpoint, _):
        odd = (await post(endpoint, "/responses")).json()["error"]
    assert (odd["message"], odd["param"]) == ("max_output_tokens is odd", "max_output_tokens")
    with upstream(502, b'{"error": "gone"}') as (endpoint, _):
        assert (await post(endpoint, "/responses")).json()["error"]["message"] == "gone"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"oops", b'{"choices": [{}]}'])
async def test_an_answer_that_is_no_chat_completion_is_a_503(body):
    with upstream(200, body) as (endpoint, _):
        answer = await post(endpoint, "/responses")
    assert (answer.status_code, "no choices" in answer.text) == (503, True)


async def test_a_model_without_raw_prompts_has_no_text_completions():
    message = {"choices": [{"message": {"role": "assistant", "content": "a"}}]}
    with upstream(200, json.dumps(message).encode()) as (endpoint, _):
        answer = await post(endpoint, "/completions")
    assert (answer.status_code, "without text completions" in answer.text) == (501, True)


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/chat/completions"])
@pytest.mark.parametrize(
    "first", [b"", b'data: 3\n\ndata: {"raw_prompt": true, "choices": []}\n\n']
)
async def test_a_stream_that_breaks_off_ends_with_an_error(path, first):
    with upstream(200, first, "text/event-stream") as (endpoint, _):
        answer = await post(endpoint, path, stream=True)
    last = json.loads(answer.text.strip().split("\n")[-1].removeprefix("data: "))
    assert "broke off before the answer was whole" in last["error"]["message"]


async def test_a_served_model_that_is_gone_is_named():
    gone = art.Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k", model_name="agent")
    with (
        Recorder(gone, trainable=False) as recorder,
        recorder.recorded(Recording(trajectory=art.Trajectory())) as endpoint,
    ):
        for answer in (await post(endpoint, "/messages"), await count(endpoint)):
            assert (answer.status_code, answer.json()["type"]) == (503, "error")
            assert "http://127.0.0.1:9/v1 cannot be reached" in answer.text
