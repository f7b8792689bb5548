"""Requests that are far too long, or odd: each is answered, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import threading

import httpx2
import openai
import pytest

from art_core.endpoint.engine import ServedModel
from art_core.endpoint.errors import RequestError, shown
from art_core.endpoint.messages import MAX_NAME
from art_core.endpoint.prompt import MAX_MODEL_NAME, MIN_LONGEST_TOKEN, PromptLimit, prompt_tokens
from art_core.endpoint.request import MAX_OPTION_NAME, MAX_OPTIONS, MAX_STOP, chat_request
from art_core.endpoint.tools import tagged_call
from art_core.endpoint.transcripts import Transcripts
from waiting import until_async

ASK = {"role": "user", "content": "hi"}
BODY = {"model": "agent", "messages": [ASK]}


class TextTokenizer:
    """A prompt is the messages' text; each character is a token."""

    eos_token_id = None
    all_special_ids = ()

    def __init__(self, faithful=True) -> None:
        self.encoded: list[str] = []
        self._faithful = faithful

    def get_vocab(self):
        return {"x" * 100: 0, "y": 1}

    def encode(self, text, **options):
        self.encoded.append(text)
        return [ord(letter) for letter in text]

    def decode(self, token_ids, **options):
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, messages, *, tokenize, **options):
        text = "".join(message["content"] for message in messages)
        ids = self.encode(text)[:: 1 if self._faithful else -1] if tokenize else None
        return ids or text


@pytest.mark.parametrize("faithful", [True, False])
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(engine, faithful) -> None:
    engine.context_length = 10
    tokenizer, limit, transcripts = TextTokenizer(faithful), PromptLimit(), Transcripts()
    served = ServedModel(engine=engine, tokenizer=tokenizer, adapter="", name="m")

    def ids(*contents):
        messages = [{"role": "user", "content": content} for content in contents]
        request = chat_request({"model": "m", "messages": messages})
        return prompt_tokens(request, served, transcripts, limit)[1]

    assert len(ids("xy")) == len(ids("xz")) == 2
    assert len(ids("x" * 1000)) == 1000  # ten tokens of a hundred characters: not known from here
    tokenizer.encoded.clear()
    for contents in (["x" * 1001], [""] * 11):
        with pytest.raises(RequestError, match="Shorten the messages") as caught:
            ids(*contents)
        assert caught.value.body()["error"]["code"] == "context_length_exceeded"
    assert tokenizer.encoded == []


def test_the_longest_token_is_not_taken_for_shorter_than_usual(engine, tokenizer) -> None:
    served = ServedModel(engine=engine, tokenizer=tokenizer, adapter="", name="m")
    most = MIN_LONGEST_TOKEN * engine.context_length
    PromptLimit().check("x" * most, 1, served)
    with pytest.raises(RequestError, match=f"1 messages and {most + 1} characters"):
        PromptLimit().check("x" * (most + 1), 1, served)


async def test_others_are_answered_while_a_prompt_is_made(host, tokenizer, ask, http) -> None:
    begun, go_on = threading.Event(), threading.Event()
    render = tokenizer.apply_chat_template

    def slow(conversation, **options):
        begun.set()
        assert go_on.wait(30)
        return render(conversation, **options)

    tokenizer.apply_chat_template = slow
    asked = asyncio.create_task(ask())
    await until_async(begun.is_set)
    assert (await http.get(host.base_url.removesuffix("/v1") + "/health")).status_code == 200
    go_on.set()
    assert (await asked).choices[0].message.content == "ok"


class Panic(BaseException):
    """As pyo3 raises it where Rust panics."""


async def test_a_panic_while_a_prompt_is_made_is_answered(refused, tokenizer) -> None:
    def panics(text, **options):
        raise Panic("index out of bounds")

    tokenizer.encode = panics
    status, error = await refused()
    assert (status, error["code"]) == (500, "internal_error")
    assert "index out of bounds" in error["message"]


ODD_TOOLS = [
    (["look_up"], {}, "name"),
    ({"en": "look_up"}, {}, "name"),
    (7, {}, "name"),
    ("", {}, "name"),
    ("x" * (MAX_NAME + 1), {}, "name"),
    ("look_up", {"parameters": "none"}, "parameters"),
    ("look_up", {"parameters": [1]}, "parameters"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "more", "fault"), ODD_TOOLS)
async def test_an_odd_tool_is_refused_by_its_place(refused, name, more, fault, stream) -> None:
    tool = {"type": "function", "function": {"name": name, **more}}
    status, error = await refused(tools=[tool], stream=stream)
    assert (status, error["code"]) == (400, "invalid_value")
    assert error["param"] == f"tools[0].function.{fault}"


ODD_SCHEMAS = [
    {"properties": []},
    {"properties": [1]},
    {"properties": {"x": 5}},
    {"properties": {"x": {"type": 5}}},
    {"properties": {"x": {"type": [5, None]}}},
    {"properties": {"x": {"anyOf": 5, "oneOf": [[], None]}}},
]


@pytest.mark.parametrize("schema", ODD_SCHEMAS)
def test_calls_are_read_whatever_form_a_schema_has(schema) -> None:
    text = "<function=f><parameter=x>5</parameter></function>"
    assert tagged_call(text, 0, {"f": schema}) == (
        {"name": "f", "arguments": {"x": "5"}},
        len(text),
    )


def test_a_schema_of_any_depth_is_read() -> None:
    schema: dict = {"type": "integer"}
    for _ in range(900):
        schema = {"anyOf": [schema]}
    text = "<function=f><parameter=x>5</parameter></function>"
    read = tagged_call(text, 0, {"f": {"properties": {"x": schema}}})
    assert read is not None and read[0]["arguments"] == {"x": "5"}


LONG = "x" * 8000


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({"model": "x" * (MAX_MODEL_NAME + 1)}, 404, "model"),
        ({"model": LONG}, 404, "model"),
        ({"model": "agent@" + "9" * 5000}, 404, "model"),
        ({"model": "agent\n@7"}, 404, "model"),
        ({"model": [LONG]}, 400, "model"),
        ({LONG: 1}, 400, LONG[:200]),
        ({"temperature": LONG}, 400, "temperature"),
        ({"stop": "x" * (MAX_STOP + 1)}, 400, "stop"),
        ({"response_format": {LONG: LONG}}, 400, "response_format"),
        ({"tool_choice": [LONG] * 2}, 400, "tool_choice"),
        ({"stream": True, "stream_options": {LONG: 1}}, 400, "stream_options"),
        ({"messages": [{"role": LONG}]}, 400, "messages[0].role"),
        ({"chat_template_kwargs": {"x" * (MAX_OPTION_NAME + 1): 1}}, 400, "chat_template_kwargs"),
        (
            {"chat_template_kwargs": {f"x{n}": 1 for n in range(MAX_OPTIONS + 1)}},
            400,
            "chat_template_kwargs",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_long_value_is_refused_in_few_words(http, options, status, param) -> None:
    answer = await http.post("/chat/completions", json={**BODY, **options})
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert len(answer.text) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "agent", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "agent", "temperature": 1e' + b"9" * 5000 + b"}",
        b'{"model": "agent", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "agent", "messages": ' + b'{"a":' * 3000 + b"1" + b"}" * 3001,
        b'{"model": "agent", "tools": ' + b"[" * 900 + b"]" * 900 + b', "messages": []}',
        b"\xff\xfe{}",
        b'"' + b"x" * 9000,
    ],
    ids=lambda body: str(body[:40]),
)
async def test_odd_json_is_the_clients_mistake(http, body) -> None:
    answer = await http.post("/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


async def test_headers_of_any_bytes_are_answered(host) -> None:
    _, _, address = host.base_url.partition("//")
    name, _, port = address.removesuffix("/v1").partition(":")
    for header in (b"Authorization: Bearer \xff\xfe", b"X-ART-Context: \xe4\xff", b"X: \xff"):
        reader, writer = await asyncio.open_connection(name, int(port))
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header)
        writer.write(b"\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401"), answer
        writer.close()
        await writer.wait_closed()


def test_a_value_is_shown_in_proportion_to_the_limit() -> None:
    assert shown({"a": [1, (2,)]}) == "{'a': [1, [2]]}"
    assert shown([[[[[1]]]]]) == "[[[['…']]]]"
    many = {f"{n}": list(range(1000)) for n in range(1000)}
    assert len(shown(many, 300)) == len(shown("x" * 1000, 300)) == 300


async def test_an_engine_that_cancels_a_request_is_a_503(engine, ask) -> None:
    engine.failure = asyncio.CancelledError()
    with pytest.raises(openai.InternalServerError, match="the engine cancelled the request"):
        await ask()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_cancels_its_request(
    engine, host, stream
) -> None:
    engine.pause_s = 1.5
    headers = {"Authorization": f"Bearer {host.api_key}"}
    async with httpx2.AsyncClient(base_url=host.base_url, headers=headers) as client:
        body = {**BODY, "stream": stream}
        task = asyncio.create_task(client.post("/chat/completions", json=body))
        await until_async(lambda: engine.running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until_async(lambda: engine.running == 0)
    assert engine.cancelled == 1
