"""Responses, Messages and Completions over `art serve`."""

from __future__ import annotations

import httpx2
import openai
import pytest
from scripted import END, ByteTokenizer, OneModel, ScriptedEngine

import art_core as art
from art_core.endpoint.host import EndpointHost
from art_core.testing.echo import EchoBackend
from art_serverless.server.keys import Keys

KEYS = ("the first key of the tests", "the second key of the tests")
BODIES = {
    "/responses": {"input": "hi"},
    "/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]},
    "/completions": {"prompt": "hi"},
}


class ScriptedBackend(EchoBackend):
    """An echo backend whose models are served by a scripted engine."""

    def __init__(self, host):
        super().__init__()
        self.host = host

    async def register(self, model):
        await super().register(model)
        return art.Endpoint(
            base_url=self.host.base_url, api_key=self.host.api_key, model_name="agent"
        )


@pytest.fixture
def engine():
    return ScriptedEngine(lines=["hello"])


@pytest.fixture
def server(serving, engine):
    with EndpointHost(OneModel(engine, ByteTokenizer())) as host:
        keys = Keys(tuple(key.encode() for key in KEYS))
        served = serving(ScriptedBackend(host), keys=keys)
        body = {"project": "demo", "name": "agent", "base_model": "base", "return_existing": True}
        assert ask(served, "/preview/models", **body).status_code == 200
        yield served
        served.stop()


def ask(server, path, key=KEYS[0], **body):
    headers = {"x-api-key": key}
    return httpx2.post(server.url + path, json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_each_protocol_is_answered(server, engine, path, stream):
    answer = ask(server, path, model="agent", stream=stream, **BODIES[path])
    assert answer.status_code == 200, answer.text
    text = answer.text
    parts = [f'"{letter}"' for letter in "helo"] if stream else ["hello"]
    assert [part for part in parts if part not in text] == []
    assert ("token_ids" in text, "agent@7" in text) == (False, True)


def test_stored_responses_belong_to_their_key(server):
    first = ask(server, "/responses", model="agent", input="hi").json()
    more = {"model": "agent", "input": "on", "previous_response_id": first["id"]}
    assert ask(server, "/responses", **more).status_code == 200
    assert ask(server, "/responses", key=KEYS[1], **more).status_code == 404
    url = f"{server.url}/responses/{first['id']}"
    assert httpx2.get(url, headers={"x-api-key": KEYS[0]}).json() == first
    assert httpx2.delete(url, headers={"x-api-key": KEYS[0]}).json()["deleted"] is True
    assert httpx2.get(url, headers={"x-api-key": KEYS[0]}).status_code == 404


def test_errors_have_the_form_of_their_protocol(server):
    unknown = ask(server, "/messages", model="other", **BODIES["/messages"])
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    wrong = ask(server, "/messages", key="wrong", model="agent", **BODIES["/messages"])
    assert (wrong.status_code, wrong.json()["type"]) == (401, "error")
    odd = ask(server, "/responses", model="agent", input="hi", max_output_tokens=0)
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "max_output_tokens")


def test_tokens_are_counted_by_the_models_endpoint(server):
    body = {"model": "agent", "messages": BODIES["/messages"]["messages"]}
    usage = ask(server, "/messages", max_tokens=9, **body).json()["usage"]
    counted = ask(server, "/messages/count_tokens", **body).json()
    assert counted == {"input_tokens": usage["input_tokens"]}


def test_openais_client_streams_a_response(server, engine):
    with openai.OpenAI(base_url=server.url, api_key=KEYS[0]) as client:
        answer = client.responses.create(model="agent", input="hi", stream=True)
        (*_, last) = answer
    assert last.response.output_text == "hello"
    assert engine.asked[0][0][-1] == END
