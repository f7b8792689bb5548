import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
import orjson
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.client.openai_client import _trainable_client, openai_client, policy_version
from art_core.data.trajectory import tokens_of

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**more):
    """What an engine answers when it is asked for token ids: two choices to the prompt [1, 2]."""
    choices = [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": '{"word": "yes"}'},
            "logprobs": {
                "content": [{"token": "y", "bytes": None, "logprob": -0.5, "top_logprobs": []}]
            },
            "token_ids": [7 + i],
        }
        for i in range(2)
    ]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "agent@3",
        "prompt_token_ids": [1, 2],
        "choices": choices,
    } | more


def events(*chunks):
    return b"".join(b"data: %b\n\n" % orjson.dumps(c) for c in chunks) + b"data: [DONE]\n\n"


class Scripted:
    """An OpenAI-like server on loopback that gives one answer and keeps what it was asked."""

    def __init__(self):
        script = self
        self.answer, self.asked, self.headers = completion(), [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                script.asked.append(orjson.loads(body))
                script.headers.append(self.headers)
                streams = isinstance(script.answer, bytes)
                answer = script.answer if streams else orjson.dumps(script.answer)
                self.send_response(200)
                kind = "text/event-stream" if streams else "application/json"
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def endpoint(self):
        url = f"http://127.0.0.1:{self.http.server_port}/v1"
        return art.Endpoint(base_url=url, api_key="secret", model_name="agent")


@pytest.fixture
def server():
    scripted = Scripted()
    yield scripted
    scripted.http.shutdown()
    scripted.http.server_close()


@pytest.fixture
async def client(server):
    async with openai_client(server.endpoint(), trainable=True) as made:
        yield made


def create(client, **more):
    return client.chat.completions.create(**{"model": "agent", "messages": MESSAGES} | more)


async def test_a_trainable_client_asks_for_logprobs_and_token_ids(server, client):
    await create(client, temperature=0.5)
    (asked,) = server.asked
    assert asked == {
        "model": "agent",
        "messages": MESSAGES,
        "temperature": 0.5,
        "logprobs": True,
        "return_token_ids": True,
    }
    assert server.headers[0]["Authorization"] == "Bearer secret"


async def test_every_choice_carries_the_engines_tokens_and_the_weights_that_made_it(client):
    response = await create(client)
    turns = [tokens_of(choice) for choice in response.choices]
    assert [(t.prompt_ids, t.completion_ids, t.logprobs) for t in turns] == [
        ((1, 2), (7,), (-0.5,)),
        ((1, 2), (8,), (-0.5,)),
    ]
    assert [t.policy_version for t in turns] == [3, 3]


async def test_a_choice_that_was_not_drawn_by_its_log_probs_says_so(server, client):
    server.answer = completion(sampling={"top_p": 0.9})
    assert all(tokens_of(choice).biased for choice in (await create(client)).choices)
    server.answer = completion()
    assert not any(tokens_of(choice).biased for choice in (await create(client)).choices)


async def test_each_choice_has_the_digests_of_its_prompts_images(server, client):
    server.answer = completion(prompt_images=["one", "two"])
    choices = (await create(client)).choices
    assert [tokens_of(choice).images for choice in choices] == [("one", "two")] * 2


async def test_a_choice_keeps_its_tokens_when_it_is_dumped(client):
    choice = (await create(client)).choices[0]
    dumped = choice.model_dump(mode="json")
    assert (dumped["prompt_token_ids"], dumped["policy_version"]) == ([1, 2], 3)
    assert choice.message.content == '{"word": "yes"}'


async def test_what_the_user_puts_into_the_request_is_kept(server, client):
    body = {"chat_template_kwargs": {"thinking": False}, "return_token_ids": False}
    await create(client, extra_body=body, logprobs=False, extra_headers={"X-Own": "1"})
    (asked,) = server.asked
    assert asked["chat_template_kwargs"] == {"thinking": False}
    assert (asked["return_token_ids"], asked["logprobs"]) == (False, False)
    assert server.headers[0]["X-Own"] == "1"
    assert body == {"chat_template_kwargs": {"thinking": False}, "return_token_ids": False}


@pytest.mark.parametrize("left_out", [None, openai.NOT_GIVEN, openai.omit])
async def test_a_parameter_that_is_passed_on_but_left_out_is_asked_for(server, client, left_out):
    await create(client, logprobs=left_out, extra_body=left_out, extra_headers=left_out)
    assert server.asked[0]["logprobs"] is server.asked[0]["return_token_ids"] is True


async def test_an_endpoint_without_token_ids_gives_choices_without_them(server, client):
    server.answer = completion(prompt_token_ids=None, model="gpt")
    choice = (await create(client)).choices[0]
    assert tokens_of(choice) is None
    assert not hasattr(choice, "policy_version")


async def test_a_stream_passes_through_with_its_token_ids(server, client):
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "agent"}
    deltas = [
        {"index": 0, "delta": {"content": text}, "finish_reason": None, "token_ids": [i]}
        for i, text in enumerate(("y", "es"))
    ]
    server.answer = events(*(chunk | {"choices": [delta]} for delta in deltas))
    stream = await create(client, stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(c.delta.content for c in choices) == "yes"
    assert [c.token_ids for c in choices] == [[0], [1]]
    assert server.asked[0]["return_token_ids"] is True


REQUEST = {"model": "agent", "messages": MESSAGES}


async def raw(completions):
    answer = await completions.with_raw_response.create(**REQUEST)
    assert answer.http_response.status_code == 200
    return answer.parse()


async def raw_streamed(completions):
    async with completions.with_streaming_response.create(**REQUEST) as answer:
        return await answer.parse()


async def parsed(completions):
    return await completions.parse(**REQUEST)


async def raw_parsed(completions):
    return (await completions.with_raw_response.parse(**REQUEST)).parse()


@pytest.mark.parametrize("way", [raw, raw_streamed, parsed, raw_parsed])
@pytest.mark.parametrize("beta", [False, True])
async def test_every_way_of_asking_gives_choices_with_tokens(server, client, way, beta):
    answer = await way((client.beta if beta else client).chat.completions)
    assert [tokens_of(choice).completion_ids for choice in answer.choices] == [(7,), (8,)]
    assert [tokens_of(choice).prompt_ids for choice in answer.choices] == [(1, 2)] * 2
    assert server.asked[0]["return_token_ids"] is True


def streamed_chunks():
    """A stream of two choices: the prompt's ids come first, then two tokens of each by turns."""
    head = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "agent@3"}
    opening = [{"index": i, "delta": {"role": "assistant", "content": ""}} for i in range(2)]
    yield head | {
        "choices": [choice | {"finish_reason": None, "token_ids": []} for choice in opening],
        "prompt_token_ids": [1, 2],
        "sampling": {"top_p": 0.9},
    }
    for place in range(4):
        index, last = place % 2, place > 1
        entry = {"token": "t", "bytes": None, "logprob": -0.5 * place, "top_logprobs": []}
        choice = {
            "index": index,
            "delta": {"content": "yes"[place:][:1]},
            "finish_reason": "stop" if last else None,
            "logprobs": {"content": [entry], "refusal": None},
            "token_ids": [70 + place],
        }
        yield head | {"choices": [choice]}
    yield head | {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 4}}


def tokens_and_more(choice):
    tokens = tokens_of(choice)
    return (
        tokens.prompt_ids, tokens.completion_ids, tokens.logprobs, tokens.policy_version,
        tokens.biased,
    )  # fmt: skip


STREAMED = [
    ((1, 2), (70, 72), (0.0, -1.0), 3, True),
    ((1, 2), (71, 73), (-0.5, -1.5), 3, True),
]


@pytest.mark.parametrize("beta", [False, True])
async def test_the_final_completion_of_a_stream_has_choices_with_tokens(server, client, beta):
    server.answer = events(*streamed_chunks())
    async with (client.beta if beta else client).chat.completions.stream(**REQUEST) as stream:
        final = await stream.get_final_completion()
    assert [*map(tokens_and_more, final.choices)] == STREAMED
    stored = [choice.model_dump(mode="json") for choice in final.choices]
    assert [*map(tokens_and_more, stored)] == STREAMED


async def test_chunks_that_openais_state_puts_together_have_tokens_too(server, client):
    from openai.lib.streaming.chat import ChatCompletionStreamState

    server.answer = events(*streamed_chunks())
    state = ChatCompletionStreamState()
    async for chunk in await create(client, stream=True):
        state.handle_chunk(chunk)
    assert [*map(tokens_and_more, state.get_final_completion().choices)] == STREAMED


async def test_chunks_in_an_odd_form_pass_through(server, client):
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "gpt"}
    server.answer = events(chunk | {"choices": None}, chunk | {"choices": [{"index": 0}]})
    chunks = [chunk async for chunk in await create(client, stream=True)]
    assert [chunk.choices and len(chunk.choices) for chunk in chunks] == [None, 1]


async def test_other_requests_are_sent_as_they_are(server, client):
    server.answer = {"object": "list", "data": [], "model": "m"}
    await client.post("/rerank", cast_to=object, body={"query": "a"})
    await client.post("/chat/completions", cast_to=object, body=[1])
    assert server.asked == [{"query": "a"}, [1]]
    answer = await client.post("/chat/completions", cast_to=object, body={"messages": MESSAGES})
    assert answer == server.answer


async def test_a_parsed_answer_carries_tokens_too(server, client):
    from pydantic import BaseModel

    class Word(BaseModel):
        word: str

    response = await client.chat.completions.parse(
        model="agent", messages=MESSAGES, response_format=Word
    )
    assert response.choices[0].message.parsed == Word(word="yes")
    assert tokens_of(response.choices[0]).completion_ids == (7,)
    assert server.asked[0]["logprobs"] is True


async def test_a_client_with_other_options_is_still_trainable(server, client):
    other = client.with_options(max_retries=0)
    assert tokens_of((await create(other)).choices[0]) is not None
    assert server.asked[0]["return_token_ids"] is True


async def test_a_client_of_a_model_that_is_not_trained_asks_for_nothing_more(server):
    async with openai_client(server.endpoint(), trainable=False) as plain:
        await create(plain)
    assert server.asked[0].keys() == {"model", "messages"}


class Response:
    def __init__(self, **fields):
        vars(self).update(fields)


@pytest.mark.parametrize(
    ("response", "version"),
    [
        (Response(policy_version=0, model="agent@3"), 0),
        (Response(policy_version="4"), 4),
        (Response(model="wandb-artifact:///team/demo/agent:step12"), 12),
        (Response(model="agent@12"), 12),
        (Response(model="org@x/agent@12"), 12),
        (Response(model="agent"), None),
        (Response(model="agent@latest"), None),
        (Response(model="12"), None),
        (Response(), None),
    ],
)
def test_the_policy_version_is_what_the_response_says_else_the_names_step(response, version):
    assert policy_version(response) == version


@pytest.mark.parametrize("trainable", [False, True])
def test_a_missing_openai_package_is_told_with_what_to_install(monkeypatch, trainable):
    monkeypatch.setitem(sys.modules, "openai", None)
    _trainable_client.cache_clear()
    endpoint = art.Endpoint(base_url="http://x", api_key="k", model_name="m")
    with pytest.raises(ConfigError) as caught:
        openai_client(endpoint, trainable=trainable)
    assert str(caught.value) == "the openai package is missing. pip install 'art-core[openai]'"


async def test_requests_to_this_machine_are_spread_over_small_pools_of_connections(server):
    async with openai_client(server.endpoint(), trainable=True) as client:
        transport = client._client._transport
        real, asked, answer = transport._pools[3], [], asyncio.Event()

        class Pool:
            def __init__(self, place):
                self.place, self.closed = place, False

            async def handle_async_request(self, request):
                asked.append(self.place)
                await answer.wait()
                return await real.handle_async_request(request)

            async def aclose(self):
                self.closed = True
                await real.aclose()

        transport._pools = pools = [Pool(place) for place in range(16)]
        requests = [asyncio.create_task(create(client)) for _ in range(4)]
        while len(asked) < 4:
            await asyncio.sleep(0)
        answer.set()
        await asyncio.gather(*requests)
        await create(client)
        assert asked == [0, 1, 2, 3, 0]
    assert all(pool.closed for pool in pools)


async def test_requests_to_this_machine_wait_for_each_other_where_few_files_may_be_open(
    server, monkeypatch
):
    monkeypatch.setattr("art_core.client.openai_client.raise_open_files", lambda: 256)
    async with openai_client(server.endpoint(), trainable=True) as client:
        pools = [pool._pool for pool in client._client._transport._pools]
        assert sum(pool._max_connections for pool in pools) == 64
        answers = await asyncio.gather(*[create(client) for _ in range(100)])
    assert len(answers) == 100


@pytest.mark.parametrize(
    "url", ["http://127.0.0.2:80/v1", "http://LocalHost", "http://[::1]:8000", "http://0.0.0.0:1"]
)
async def test_every_name_of_this_machine_is_known(url):
    endpoint = art.Endpoint(base_url=url, api_key="k", model_name="m")
    async with openai_client(endpoint, trainable=True) as client:
        assert hasattr(client._client._transport, "_pools")


async def test_an_endpoint_elsewhere_has_openais_own_connections():
    endpoint = art.Endpoint(base_url="https://api.example/v1", api_key="k", model_name="m")
    async with openai_client(endpoint, trainable=True) as client:
        assert not hasattr(client._client._transport, "_pools")
