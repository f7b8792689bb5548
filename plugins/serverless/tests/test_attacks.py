"""Requests that are far too long or odd, and clients that go away."""

from __future__ import annotations

import copy
import json
import socket
import threading
from urllib.parse import urlsplit

import attrs
import httpx2
import pytest

from art_core.testing.echo import EchoBackend
from art_serverless.protocol import JOBS, MAX_INFERENCE_NAME, MODELS, InferenceName
from art_serverless.server.routes import MAX_STEPS
from waiting import until

KEY = "a key of the tests"
AUTH = {"Authorization": f"Bearer {KEY}"}
MODEL = {"project": "demo", "name": "agent", "base_model": "base"}
CHAT = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
LONG = "x" * 1_000_000


@pytest.fixture
def ask(serving):
    """Ask a server that has a model: `ask(method, path, ...)`; `{id}` in a path is the model's."""
    server = serving()
    with httpx2.Client(headers=AUTH, timeout=30, base_url=server.url) as http:
        model_id = http.post(MODELS, json=MODEL).json()["id"]

        def asked(method, path, **request):
            return http.request(method, path.replace("{id}", model_id), **request)

        asked.server, asked.model_id = server, model_id
        yield asked


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", MODELS, {**MODEL, "name": LONG}, 422),
        ("POST", MODELS, {**MODEL, "base_model": LONG}, 422),
        ("POST", JOBS, {"model_id": LONG}, 404),
        ("POST", JOBS, {"model_id": [LONG]}, 404),
        ("POST", JOBS, {"model_id": "{id}", "experimental_config": {LONG: 1}}, 422),
        ("POST", JOBS, {"model_id": "{id}", "experimental_config": {"loss_fn": LONG}}, 422),
        ("POST", JOBS, {"model_id": "{id}", "trajectory_groups": [{LONG: 1}] * 3}, 422),
        ("POST", f"{MODELS}/{{id}}/log", {"trajectory_groups": [], "split": LONG}, 422),
        ("POST", f"{MODELS}/{{id}}/log", {"trajectory_groups": [], "split": [1]}, 422),
        ("DELETE", f"{MODELS}/{{id}}/checkpoints", {"steps": [1] * (MAX_STEPS + 1)}, 422),
        ("POST", "/chat/completions", {**CHAT, "model": LONG}, 404),
        ("POST", "/chat/completions", {**CHAT, "model": "agent\n@1"}, 404),
        ("POST", "/chat/completions", {**CHAT, "model": "agent@" + "9" * 5000}, 404),
        ("POST", "/chat/completions", {**CHAT, "model": [LONG]}, 400),
        ("POST", "/chat/completions", {**CHAT, "messages": []}, 400),
        ("POST", "/chat/completions", {**CHAT, "messages": LONG}, 400),
        ("POST", "/chat/completions", {**CHAT, "messages": [LONG]}, 400),
    ],
    ids=lambda value: str(value)[:50],
)
def test_long_and_odd_values_are_refused_in_few_words(ask, method, path, body, status):
    sent = json.dumps(body).replace("{id}", ask.model_id)
    answer = ask(method, path, content=sent.encode())
    assert answer.status_code == status, answer.text[:300]
    assert len(answer.text) < 6000


TURN = {
    "messages_and_choices": [
        {"role": "user", "content": "q"},
        {
            "message": {"role": "assistant", "content": "a", "tool_calls": [{"function": {}}]},
            "finish_reason": "stop",
            "token_ids": [1],
            "prompt_token_ids": [1],
            "logprobs": {"content": [{"logprob": -1.0}]},
            "policy_version": 0,
        },
    ],
    "reward": 1.0,
    "tools": [{"type": "function"}],
    "additional_histories": [{"messages_and_choices": [], "tools": None}],
    "metrics": {"a": 1},
    "metadata": {"a": 1},
    "logs": ["x"],
    "start_time": "2026-01-01T00:00:00+00:00",
}
GROUP = {"trajectories": [TURN], "exceptions": [{"type": "X"}], "metadata": {"a": 1}, "logs": []}
DEEP: list = []
for _ in range(600):
    DEEP = [DEEP]
ODD = (None, True, -1, 2**63, 1e308, "", "9" * 5000, "a\n\0é", [], [None], {"": {}}, DEEP)


def changes(value):
    """Yield a JSON value with each of its parts replaced by odd ones."""
    yield from ODD
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, part in value.items() if isinstance(value, dict) else listed:
        for changed in changes(part):
            other = copy.copy(value)
            other[key] = changed
            yield other


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", MODELS, {**MODEL, "entity": "e", "return_existing": True}),
        ("POST", f"{MODELS}/{{id}}/log", {"trajectory_groups": [GROUP], "split": "val"}),
        ("DELETE", f"{MODELS}/{{id}}/checkpoints", {"steps": [1]}),
        (
            "POST",
            JOBS,
            {"model_id": "x", "trajectory_groups": [GROUP], "experimental_config": {"epsilon": 1}},
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_no_body_is_a_failure_of_the_server(ask, method, path, body):
    if "model_id" in body:
        body = {**body, "model_id": ask.model_id}
    for changed in changes(body):
        answer = ask(method, path, content=json.dumps(changed).encode())
        assert answer.status_code < 500, (str(changed)[:300], answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["after", "limit", "wait", "model_id", "idempotency_key"])
def test_no_query_is_a_failure_of_the_server(ask, name):
    for value in ("x", "nan", "-1", "9" * 5000, "%ff", "%00", "1e400", "\u0663"):
        for path in (f"{JOBS}/none/events", JOBS, f"{MODELS}/{{id}}/checkpoints"):
            assert ask("GET", f"{path}?{name}={value}").status_code < 500


@pytest.mark.parametrize("header", ["X-ART-Context", "Idempotency-Key", "Authorization", "X"])
def test_headers_of_any_bytes_are_answered(ask, header):
    headers = {**AUTH, header: b"\xe4\xff"}
    answer = httpx2.post(f"{ask.server.url}/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == (401 if header == "Authorization" else 200)


def test_a_name_of_any_length_is_read():
    for text in ("x" * (MAX_INFERENCE_NAME + 1), "a@" + "1" * 16, "a\nb", "a@\u0663", ""):
        assert InferenceName.parse(text) == InferenceName(name=text)
    assert InferenceName.parse("a\nb@12") == InferenceName(name="a\nb", step=12)


class Holding(EchoBackend):
    """An endpoint that answers with `answer` and then nothing; `gone` is set when a client left."""

    def __init__(self, answer=b""):
        super().__init__()
        self._answer = answer
        self.asked, self.gone = threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(self._answer)
            self.asked.set()
            while connection.recv(1 << 16):
                pass
            self.gone.set()

    async def register(self, model):
        endpoint = await super().register(model)
        port = self.listener.getsockname()[1]
        return attrs.evolve(endpoint, base_url=f"http://127.0.0.1:{port}/v1")


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("answer", [b"", STREAM, STREAM + b"9\r\ndata: {}\n\r\n"])
def test_a_client_that_leaves_ends_its_request_in_the_engine(serving, stream, answer):
    backend = Holding(answer)
    server = serving(backend)
    assert httpx2.post(server.url + MODELS, json=MODEL, headers=AUTH).status_code == 200
    body = json.dumps({**CHAT, "stream": stream})
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert backend.asked.wait(20)
        if answer:
            client.settimeout(20)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    until(backend.gone.is_set)
    backend.listener.close()
