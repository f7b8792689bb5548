"""A model at an endpoint that is paid for: the cost of its own tokens."""

import asyncio
import gzip
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import orjson
import pytest

import art_core as art
from art_core.client.meter import SOURCE
from art_core.costs.track import CallsInside, MeteredCall
from art_core.prices.book import provider_at
from art_core.testing.echo import EchoBackend

pytestmark = pytest.mark.usefixtures("no_open_models")
HELLO = [{"role": "user", "content": "hi"}]
DOLLAR = {"prompt_per_million": 1.0, "completion_per_million": 1.0}
USAGE = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
MESSAGE = {"role": "assistant", "content": '{"word": "yes"}'}
CHAT = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "paid-2026-01-01",
    "choices": [{"index": 0, "finish_reason": "stop", "message": MESSAGE}],
    "usage": USAGE,
}
CHUNK = {
    "id": "x",
    "object": "chat.completion.chunk",
    "created": 0,
    "model": "paid",
    "choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}],
}


def events(*chunks):
    return b"".join(b"data: %b\n\n" % orjson.dumps(c) for c in chunks) + b"data: [DONE]\n\n"


STREAM = events(CHUNK, CHUNK | {"choices": [], "usage": USAGE})


class Server:
    """Gives one scripted answer; keeps nothing."""

    def __init__(self):
        script = self
        self.answer, self.status, self.encoding = orjson.dumps(CHAT), 200, None
        self.kind = "application/json"

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(script.status)
                self.send_header("Content-Type", script.kind)
                self.send_header("Content-Length", str(len(script.answer)))
                if script.encoding:
                    self.send_header("Content-Encoding", script.encoding)
                self.end_headers()
                self.wfile.write(script.answer)

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def streams(self, data=STREAM, encoding=None):
        self.answer, self.kind, self.encoding = data, "text/event-stream", encoding


@pytest.fixture(scope="module")
def running():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server(running):
    running.answer, running.status, running.encoding = orjson.dumps(CHAT), 200, None
    running.kind = "application/json"
    return running


@pytest.fixture
async def baseline(server, tmp_path):
    model = art.Model(
        name="baseline",
        project="p",
        base_path=tmp_path,
        sinks=[],
        inference_model_name="paid",
        inference_base_url=server.url,
        plugins=art.Plugins(),
    )
    model.metrics_builder().register_model_pricing("paid", **DOLLAR)
    yield model
    await model.close()


@pytest.fixture
async def trained(tmp_path):
    model = art.Model(
        name="trained", project="p", base_path=tmp_path, sinks=[], plugins=art.Plugins()
    )
    yield model
    await model.close()


def ask(asked, **options):
    request = {"model": "paid", "messages": HELLO} | options
    return asked.openai_client().chat.completions.create(**request)


async def costs(model, **options):
    metrics = (await model.log(**options)).metrics
    found = {k: v for k, v in metrics.items() if k.startswith("costs/") and "/cum/" not in k}
    unpriced = metrics.get("data/step_unpriced_calls")
    return {k: v for k, v in found.items() if k.count("/") == 2}, unpriced


async def test_tokens_of_the_model_itself_are_costs_of_an_evaluation(baseline):
    assert (await ask(baseline)).choices[0].message.content == MESSAGE["content"]
    assert await costs(baseline) == ({"costs/eval/model": 1.0}, None)
    (receipt,) = baseline.run.history.last.receipts
    assert (receipt["item"], receipt["input_tokens"]) == ("paid", 1_000_000)


async def test_the_active_builder_and_the_gathered_group_come_first(baseline, trained):
    async def rollout():
        await ask(baseline)
        return art.Trajectory()

    with trained.metrics_builder("train").activate_context():
        await ask(baseline)
    groups = await art.gather_trajectory_groups(
        [art.TrajectoryGroup([rollout(), rollout()])], pbar_desc=None
    )
    assert await costs(trained, split="train") == ({"costs/train/model": 1.0}, None)
    assert await costs(trained, trajectories=groups) == ({"costs/eval/model": 2.0}, None)
    assert await costs(baseline) == ({}, None)


@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
async def test_a_stream_is_priced_when_it_ends(baseline, server, encoding):
    packed = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](STREAM)
    server.streams(packed, encoding)
    chunks = [chunk async for chunk in await ask(baseline, stream=True)]
    assert len(chunks) == 2
    assert await costs(baseline) == ({"costs/eval/model": 1.0}, None)


async def test_a_stream_that_says_nothing_of_its_tokens_is_counted(baseline, server, caplog):
    server.streams(events(CHUNK))
    assert [chunk async for chunk in await ask(baseline, stream=True)]
    server.streams(b"odd", "of-its-own")
    async with baseline.openai_client().chat.completions.with_streaming_response.create(
        model="paid", messages=HELLO, stream=True
    ) as answer:
        assert await answer.read() == b"odd"
    assert await costs(baseline) == ({}, 2.0)
    assert "stream_options={'include_usage': True}" in caplog.text


async def test_whatever_way_the_client_is_used_the_answer_is_paid(baseline, server):
    client = baseline.openai_client()
    await client.chat.completions.with_raw_response.create(model="paid", messages=HELLO)
    await client.embeddings.create(model="paid", input="hi", encoding_format="float")
    await client.responses.create(model="paid", input="hi")
    server.answer = orjson.dumps(CHAT | {"usage": {"input_tokens": 1_000_000, "output_tokens": 0}})
    await client.responses.create(model="paid", input="hi")
    assert await costs(baseline) == ({"costs/eval/model": 4.0}, None)


async def test_an_answer_without_usage_is_counted_and_what_is_no_answer_is_not(baseline, server):
    client = baseline.openai_client()
    await client.models.retrieve("paid")
    server.answer = orjson.dumps({"id": "x", "results": []})
    await client.moderations.create(input="hi")
    server.answer = orjson.dumps([])
    await client.post("/lists", cast_to=object, body={})
    server.kind, server.answer = "text/plain", b"pong"
    await client.post("/ping", cast_to=str, body={})
    assert await costs(baseline) == ({}, None)
    server.kind, server.answer = "application/json", orjson.dumps(CHAT | {"usage": None})
    await ask(baseline)
    server.status = 400
    with pytest.raises(openai.BadRequestError):
        await ask(baseline)
    assert await costs(baseline) == ({}, 1.0)


async def test_what_cannot_be_read_reaches_the_caller_all_the_same(baseline, server, caplog):
    server.streams(b"data: {broken\n\n" + STREAM)
    client = baseline.openai_client().chat.completions.with_streaming_response
    async with client.create(model="paid", messages=HELLO, stream=True) as answer:
        assert await answer.read() == server.answer
    assert "a stream could not be read for its usage" in caplog.text
    server.kind, server.answer = "application/json", b"{broken"
    async with client.create(model="paid", messages=HELLO) as answer:
        assert await answer.read() == b"{broken"
    assert "the usage of an answer of http://127.0.0.1" in caplog.text


async def test_a_model_without_a_price_is_counted_and_said_once(baseline, caplog):
    await ask(baseline, model="another")
    await ask(baseline, model="another")
    assert await costs(baseline) == ({}, 2.0)
    assert caplog.text.count("unpriced: calls to 'another' of '127.0.0.1:") == 1


async def test_what_the_provider_says_wins(baseline, server):
    server.answer = orjson.dumps(CHAT | {"usage": USAGE | {"cost": 0.25}})
    await ask(baseline, model="another")
    assert await costs(baseline) == ({"costs/eval/model": 0.25}, None)


async def test_recorded_calls_are_paid_where_the_recording_began(baseline, trained, server):
    def agent(endpoint, **options):
        with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
            answer = client.chat.completions.create(model="paid", messages=HELLO, **options)
            return list(answer) if options else answer

    async def rollout():
        trajectory = art.Trajectory()
        with baseline.recording(trajectory) as endpoint:
            thread = threading.Thread(target=agent, args=(endpoint,))
            thread.start()
            await joined(thread)
        return trajectory

    groups = await art.gather_trajectory_groups([art.TrajectoryGroup([rollout()])], pbar_desc=None)
    assert len(groups[0].trajectories[0].messages_and_choices) == 2
    assert await costs(trained, trajectories=groups) == ({"costs/eval/model": 1.0}, None)
    server.streams()
    with baseline.metrics_builder("train").activate_context():  # noqa: SIM117
        with baseline.recording(art.Trajectory()) as endpoint:
            thread = threading.Thread(target=agent, args=(endpoint,), kwargs={"stream": True})
            thread.start()
            await joined(thread)
    assert await costs(baseline) == ({"costs/train/model": 1.0}, None)


async def joined(thread):
    while thread.is_alive():
        await asyncio.sleep(0.005)


async def test_a_trained_model_pays_for_its_devices_and_not_for_its_tokens(tmp_path):
    backend = EchoBackend(gpu_cost_per_hour_usd=1.0)
    model = art.TrainableModel(
        name="t", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    await model.openai_client().chat.completions.create(model="t", messages=HELLO)
    with model.recording(art.Trajectory()) as endpoint:
        async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as c:
            await c.chat.completions.create(model="t", messages=HELLO)
    assert await costs(model) == ({}, None)
    await model.close()
    await backend.close()


def tracked(function, **options):
    return art.track_api_cost(
        source="judge",
        provider="acme",
        model_name="j",
        prompt_per_million=3.0,
        completion_per_million=3.0,
        **options,
    )(function)


async def test_a_tracked_call_of_the_models_client_is_paid_once_at_its_own_leaf(baseline, server):
    async def one():
        return await ask(baseline)

    async def three():
        await ask(baseline)
        await ask(baseline)
        return "verdict", await ask(baseline)

    await tracked(one)()
    assert await costs(baseline) == ({"costs/train/judge": 3.0}, None)
    await tracked(three, response_getter=lambda result: result[1])()
    both = {"costs/train/judge": 3.0, "costs/eval/model": 2.0}
    assert await costs(baseline) == (both, None)


async def test_a_tracked_call_that_fails_leaves_what_was_paid(baseline):
    async def fails():
        await ask(baseline)
        raise ValueError

    with pytest.raises(ValueError):
        await tracked(fails)()
    assert await costs(baseline) == ({"costs/eval/model": 1.0}, None)


async def test_tracked_streams_of_the_models_client_are_paid_once(baseline, server):
    server.streams()

    async def stream():
        return await ask(baseline, stream=True)

    async def generator():
        async for chunk in await ask(baseline, stream=True):
            yield chunk

    assert len([c async for c in await tracked(stream)()]) == 2
    assert len([c async for c in tracked(generator)()]) == 2
    assert len([c async for c in await tracked(tracked(stream))()]) == 2
    assert await costs(baseline) == ({"costs/train/judge": 9.0}, None)


def test_a_metered_call_after_the_tracked_one_ended_is_booked_unless_that_pays_for_a_stream():
    booked = []
    call = MeteredCall(art.TokenUsage(), lambda: booked.append("call"))
    for inside, times in ((CallsInside(), 1), (CallsInside(streams=True), 1)):
        inside.end()
        inside.meter(call)
        assert len(booked) == times


async def test_a_price_registered_with_the_called_model_counts_in_anothers_run(baseline, trained):
    with trained.metrics_builder("eval").activate_context():
        await ask(baseline)
    assert await costs(trained) == ({"costs/eval/model": 1.0}, None)


def test_providers_are_known_by_the_address_of_their_api(monkeypatch):
    assert provider_at("https://api.openai.com/v1") == "openai"
    assert provider_at("http://127.0.0.1:8000/v1") is None
    assert SOURCE == "model"


def test_without_the_price_book_no_provider_is_known(monkeypatch):
    monkeypatch.setattr("art_core.prices.book._library", lambda: None)
    assert provider_at("https://api.mistral.ai/v1") is None
