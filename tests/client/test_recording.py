"""The requests and answers of an agent with a client of its own become a trajectory."""

import asyncio
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import MSG_PEEK

import attrs
import httpx
import httpx2
import openai
import orjson
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.client.recorder import Recorder, Recording
from art_core.data.trajectory import tokens_of
from art_core.rl.sequences import merge_turns, turns_of
from art_core.testing.echo import EchoBackend

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
async def model(tmp_path):
    backend = EchoBackend()
    model = art.TrainableModel(
        name="agent", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    yield model
    await model.close()
    await backend.close()


async def ask(endpoint, messages, **options):
    """Ask as an agent does that knows of nothing but an OpenAI client."""
    async with openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0
    ) as client:
        answer = await client.chat.completions.create(
            model=endpoint.model_name, messages=messages, **options
        )
        return [chunk async for chunk in answer] if options.get("stream") else answer


async def converse(endpoint, **options):
    messages = [*HELLO]
    for told in ("more", "less"):
        answer = await ask(endpoint, messages, **options)
        choice = answer[0].choices[0] if options.get("stream") else answer.choices[0]
        said = choice.delta.content if options.get("stream") else choice.message.content
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": told}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agents_turns_become_one_conversation_with_the_engines_tokens(model, stream):
    trajectory = art.Trajectory()
    with model.recording(trajectory) as endpoint:
        await converse(endpoint, stream=stream, logprobs=False)
    told = [(m["role"], m["content"]) for m in trajectory.messages()]
    hello, more = ("assistant", "hello"), ("assistant", "more")
    assert told == [("user", "hello"), hello, ("user", "more"), more]
    assert trajectory.additional_histories == []
    turns, without = turns_of(trajectory.histories()[0])
    (sequence,) = merge_turns(turns).sequences
    assert without == 0
    text = b"user:hello\nassistant:hello\nuser:more\nassistant:more\n"
    assert bytes(sequence.token_ids) == text
    assert sequence.num_trainable == len(b"hello\nmore\n")
    assert sequence.policy_versions == (0, 0)


async def test_what_was_recorded_is_trained(model):
    trajectories = [art.Trajectory(reward=reward) for reward in (0.0, 1.0)]
    for trajectory in trajectories:
        with model.recording(trajectory) as endpoint:
            await converse(endpoint)
    result = await model.train([art.TrajectoryGroup(trajectories)])
    assert result.metrics["data/step_num_sequences"] == 2


def test_an_agent_that_knows_of_no_event_loop_is_recorded_too(tmp_path):
    async def rollout():
        backend = EchoBackend()
        async with art.TrainableModel(
            name="agent", project="p", base_model="base", base_path=tmp_path, sinks=[]
        ) as model:
            await model.register(backend)
            trajectory = art.Trajectory()
            with model.recording(trajectory) as endpoint:
                client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
                with client:
                    client.chat.completions.create(model="agent", messages=HELLO)
        await backend.close()
        return trajectory

    (_, choice) = asyncio.run(rollout()).messages_and_choices
    assert tokens_of(choice).completion_ids == tuple(b"hello\n")


async def test_trajectories_that_are_recorded_at_the_same_time_keep_apart(model):
    async def one(word):
        trajectory = art.Trajectory()
        with model.recording(trajectory) as endpoint:
            await ask(endpoint, [{"role": "user", "content": word}])
        return trajectory

    recorded = await asyncio.gather(*[one(f"word {i}") for i in range(8)])
    said = [trajectory.messages()[1]["content"] for trajectory in recorded]
    assert said == [f"word {i}" for i in range(8)]


async def test_a_conversation_that_goes_on_with_none_becomes_another_history(model):
    trajectory = art.Trajectory()
    with model.recording(trajectory) as endpoint:
        await ask(endpoint, HELLO, tools=TOOLS)
        await ask(endpoint, [{"role": "user", "content": "a sub-agent's"}], tools=TOOLS)
        await ask(endpoint, HELLO)
    assert trajectory.tools == TOOLS
    assert len(trajectory.messages_and_choices) == 2
    told = [(h.messages()[0]["content"], h.tools) for h in trajectory.additional_histories]
    assert told == [("a sub-agent's", TOOLS), ("hello", None)]


async def test_each_of_n_choices_is_recorded(model):
    trajectory = art.Trajectory()
    with model.recording(trajectory) as endpoint:
        await ask(endpoint, HELLO, n=2)
    choices = [history.messages_and_choices[-1] for history in trajectory.histories()]
    assert [choice.index for choice in choices] == [0, 1]
    assert all(tokens_of(choice) for choice in choices)


class Upstream:
    """A server that a test scripts with what to do when it is asked."""

    def __init__(self, act):
        upstream = self
        self.headers, self.asked, self.paths = [], [], []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                upstream.headers.append(self.headers)
                upstream.paths.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream.asked.append(orjson.loads(body))
                act(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.endpoint = art.Endpoint(base_url=url, api_key="secret", model_name="agent")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def sends(body, status=200, kind="application/json"):
    def act(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        handler.wfile.write(body)

    return act


@contextmanager
def recorded(act, trajectory):
    """Record what an agent asks a server that acts like this."""
    with (
        Upstream(act) as upstream,
        Recorder(upstream.endpoint, trainable=True) as recorder,
        recorder.recorded(Recording(trajectory=trajectory)) as endpoint,
    ):
        yield endpoint


def completion(**more):
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": "yes"}} | more
    return orjson.dumps({"id": "x", "model": "agent@3", "choices": [choice]})


async def test_the_endpoint_is_asked_with_its_own_key_for_tokens_in_the_context_of_the_builder():
    with (
        Upstream(sends(completion())) as upstream,
        Recorder(upstream.endpoint, trainable=True) as recorder,
    ):
        for context in ("eval", ""):
            recording = Recording(trajectory=art.Trajectory(), context=context)
            with recorder.recorded(recording) as endpoint:
                await ask(endpoint, HELLO, logprobs=False, temperature=0.5)
    first, second = upstream.headers
    assert first["Authorization"] == "Bearer secret"
    assert (first["X-ART-Context"], second["X-ART-Context"]) == ("eval", None)
    assert upstream.asked[0] == {
        "model": "agent",
        "messages": HELLO,
        "temperature": 0.5,
        "logprobs": True,
        "return_token_ids": True,
    }


async def test_unconstrained_requests_go_without_what_would_force_the_form_of_an_answer():
    forcing = {"response_format": {"type": "json_object"}, "parallel_tool_calls": False}
    with (
        Upstream(sends(completion())) as upstream,
        Recorder(upstream.endpoint, trainable=True) as recorder,
    ):
        for unconstrained in (True, False):
            recording = Recording(trajectory=art.Trajectory(), unconstrained=unconstrained)
            with recorder.recorded(recording) as endpoint:
                for choice in ("required", "none"):
                    await ask(endpoint, HELLO, tools=TOOLS, tool_choice=choice, **forcing)
    free, hidden, *as_they_were = upstream.asked
    tokens = {"logprobs": True, "return_token_ids": True}
    assert free == {"model": "agent", "messages": HELLO, "tools": TOOLS} | tokens
    assert hidden == free | {"tool_choice": "none"}
    assert as_they_were == [free | forcing | {"tool_choice": c} for c in ("required", "none")]


async def test_a_model_that_is_not_trained_is_recorded_as_it_was_asked(tmp_path):
    with Upstream(sends(completion())) as upstream:
        async with art.Model(
            name="teacher",
            project="p",
            inference_model_name="gpt",
            inference_base_url=upstream.endpoint.base_url,
            base_path=tmp_path,
            sinks=[],
        ) as teacher:
            trajectory = art.Trajectory()
            with teacher.recording(trajectory) as endpoint:
                await ask(endpoint, HELLO)
    assert upstream.asked == [{"model": "gpt", "messages": HELLO}]
    assert [m["content"] for m in trajectory.messages()] == ["hello", "yes"]
    assert tokens_of(trajectory.messages_and_choices[1]) is None


async def test_a_recording_belongs_to_the_context_of_the_active_builder(model, monkeypatch):
    told = []

    @contextmanager
    def recorded(recorder, recording):
        told.append(recording.context)
        yield

    monkeypatch.setattr(Recorder, "recorded", recorded)
    with model.recording(art.Trajectory()):
        pass
    with model.metrics_builder("eval").activate_context(), model.recording(art.Trajectory()):
        pass
    assert told == ["", "eval"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_reaches_the_agent_as_it_was(stream):
    body = orjson.dumps({"error": {"message": "no model 'agant'", "code": "model_not_found"}})
    trajectory = art.Trajectory()
    with recorded(sends(body, 404), trajectory) as endpoint:
        asking = ask(endpoint, HELLO, stream=stream)
        with pytest.raises(openai.NotFoundError, match="no model 'agant'") as caught:
            await asking
    assert caught.value.code == "model_not_found"
    assert trajectory.messages_and_choices == []


async def test_an_endpoint_that_cannot_be_reached_is_a_503_that_says_so():
    nowhere = art.Endpoint(base_url="http://127.0.0.1:9/v1", api_key="k", model_name="agent")
    recording = Recording(trajectory=art.Trajectory())
    with Recorder(nowhere, trainable=True) as recorder, recorder.recorded(recording) as endpoint:
        asking = ask(endpoint, HELLO)
        with pytest.raises(openai.InternalServerError, match=r"0\.1:9/v1 cannot be reached"):
            await asking


async def test_a_key_whose_block_has_ended_is_refused(model):
    with model.recording(art.Trajectory()) as endpoint:
        pass
    for one in (endpoint, attrs.evolve(endpoint, api_key="x")):
        with pytest.raises(openai.AuthenticationError, match="only inside its `with` block"):
            await ask(one, HELLO)


async def test_an_answer_that_comes_after_the_block_changes_nothing():
    asked, answer = threading.Event(), threading.Event()

    def late(handler):
        asked.set()
        answer.wait(5)
        sends(completion())(handler)

    trajectory = art.Trajectory()
    with Upstream(late) as upstream, Recorder(upstream.endpoint, trainable=True) as recorder:
        with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
            task = asyncio.create_task(ask(endpoint, HELLO))
            await asyncio.to_thread(asked.wait, 5)
        answer.set()
        assert (await task).choices[0].message.content == "yes"
    assert trajectory.messages_and_choices == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_that_goes_away_ends_its_request(stream):
    asked, gone = threading.Event(), threading.Event()

    def wait_until_gone(handler):
        if stream:
            sends(b"data: {}\n\n", kind="text/event-stream")(handler)
        asked.set()
        if handler.connection.recv(1, MSG_PEEK) == b"":
            gone.set()

    with recorded(wait_until_gone, art.Trajectory()) as endpoint:
        task = asyncio.create_task(ask(endpoint, HELLO, stream=stream))
        await asyncio.to_thread(asked.wait, 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(gone.wait, 5)


async def test_a_stream_comes_as_it_was_also_in_pieces_and_with_separators_of_lines_in_it():
    text = "a\u2028b\u0085c"
    chunk = {
        "id": "x",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}],
    }
    body = b"data:%b\r\n\r\ndata: [DONE]\r\n\r\n" % orjson.dumps(chunk)

    def send_in_pieces(handler):
        sends(body[:30], kind="text/event-stream")(handler)
        time.sleep(0.05)
        handler.wfile.write(body[30:])

    trajectory = art.Trajectory()
    with recorded(send_in_pieces, trajectory) as endpoint:
        (got,) = await ask(endpoint, HELLO, stream=True)
    assert got.choices[0].delta.content == trajectory.messages()[1]["content"] == text


def piece(content, finish=None):
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return b"data: %b\n\n" % orjson.dumps({"id": "x", "choices": [choice]})


DONE = b"data: [DONE]\n\n"
STREAM = "text/event-stream"


async def test_a_stream_that_breaks_off_is_passed_on_and_not_recorded(caplog):
    trajectory = art.Trajectory()
    with recorded(sends(piece("y"), kind=STREAM), trajectory) as endpoint:
        (got,) = await ask(endpoint, HELLO, stream=True)
    assert got.choices[0].delta.content == "y"
    assert trajectory.messages_and_choices == []
    assert "a stream broke off before its answer was whole" in caplog.text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (piece("yes", "stop"), STREAM),
        (piece("yes") + DONE, STREAM),
        (piece("ye", "stop") + piece("s", "stop") + DONE, STREAM),
        (completion(), "application/json"),
    ],
    ids=["no end", "no finish reason", "a finish reason in each chunk", "no stream"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_either_form_is_recorded_whatever_was_asked_for(body, kind, stream):
    trajectory = art.Trajectory()
    with recorded(sends(body, kind=kind), trajectory) as endpoint:
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key
        ) as client:
            got = await client.post(
                "/chat/completions",
                cast_to=bytes,
                body={"model": "m", "messages": HELLO, "stream": stream},
                options={"headers": {"X-Stainless-Raw-Response": "stream"}},
            )
            assert await got.read() == body
    assert [m["content"] for m in trajectory.messages()] == ["hello", "yes"]
    assert trajectory.messages_and_choices[1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_recorded_reaches_the_agent(stream, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("full")

    monkeypatch.setattr("art_core.client.recorder.add_choice", fails)
    body, kind = (piece("yes", "stop") + DONE, STREAM) if stream else (completion(), "a/json")
    trajectory = art.Trajectory()
    with recorded(sends(body, kind=kind), trajectory) as endpoint:
        assert await ask(endpoint, HELLO, stream=stream)
    assert trajectory.messages_and_choices == []
    assert "an answer could not be recorded; the agent has it" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_breaks_off_for_the_agent_too(stream):
    def breaks_off(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", STREAM if stream else "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(piece("y") if stream else b'{"choices": [')

    trajectory = art.Trajectory()
    with recorded(breaks_off, trajectory) as endpoint:
        asking = ask(endpoint, HELLO, stream=stream)
        with pytest.raises((openai.APIConnectionError, httpx2.HTTPError, httpx.HTTPError)):
            await asking
    assert trajectory.messages_and_choices == []


async def test_an_error_with_status_200_is_passed_on(caplog):
    body = orjson.dumps({"error": {"message": "overloaded", "code": 502}})
    trajectory = art.Trajectory()
    with recorded(sends(body), trajectory) as endpoint:
        answer = await ask(endpoint, HELLO)
    assert answer.error["message"] == "overloaded"
    assert trajectory.messages_and_choices == []
    assert "recorded" not in caplog.text


async def test_an_agent_that_leaves_at_the_finish_reason_has_its_answer_recorded_in_order():
    """It does not read on to the end, which never comes."""
    left = threading.Event()

    def never_ends(handler):
        if len(upstream.asked) > 1:
            sends(completion())(handler)
        else:
            sends(piece("yes", "stop"), kind=STREAM)(handler)
            left.wait(5)

    trajectory = art.Trajectory()
    with (
        Upstream(never_ends) as upstream,
        Recorder(upstream.endpoint, trainable=False) as recorder,
        recorder.recorded(Recording(trajectory=trajectory)) as endpoint,
        openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client,
    ):
        create = client.chat.completions.create
        stream = await asyncio.to_thread(create, model="m", messages=HELLO, stream=True)
        chunk = await asyncio.to_thread(next, stream)
        assert chunk.choices[0].finish_reason == "stop"
        turn = [*HELLO, {"role": "assistant", "content": "yes"}, HELLO[0]]
        await asyncio.to_thread(create, model="m", messages=turn)
        left.set()
    assert [m["content"] for m in trajectory.messages()] == ["hello", "yes", "hello", "yes"]
    assert trajectory.additional_histories == []


async def test_an_answer_that_is_whole_when_the_block_ends_is_recorded():
    left = threading.Event()

    def never_ends(handler):
        sends(piece("yes", "stop"), kind=STREAM)(handler)
        left.wait(5)

    trajectory = art.Trajectory()
    with Upstream(never_ends) as upstream, Recorder(upstream.endpoint, trainable=False) as recorder:
        with recorder.recorded(Recording(trajectory=trajectory)) as endpoint:
            client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
            create = client.chat.completions.create
            stream = await asyncio.to_thread(create, model="m", messages=HELLO, stream=True)
            await asyncio.to_thread(next, stream)
        assert len(trajectory.messages_and_choices) == 2
        left.set()
        await asyncio.to_thread(client.close)


async def test_headers_and_query_pass_both_ways():
    def limited(handler):
        handler.send_response(429)
        handler.send_header("Retry-After", "7")
        handler.send_header("Content-Type", "text/plain")
        handler.end_headers()
        handler.wfile.write(b"slow down")

    with (
        Upstream(limited) as upstream,
        Recorder(upstream.endpoint, trainable=False) as recorder,
        recorder.recorded(Recording(trajectory=art.Trajectory())) as endpoint,
    ):
        asking = ask(endpoint, HELLO, extra_headers={"X-Title": "a"}, extra_query={"v": "1"})
        with pytest.raises(openai.RateLimitError) as caught:
            await asking
    answer = caught.value.response
    assert (answer.headers["retry-after"], answer.text) == ("7", "slow down")
    assert answer.headers["content-type"].startswith("text/plain")
    (headers,) = upstream.headers
    assert (headers["X-Title"], headers["Authorization"]) == ("a", "Bearer secret")
    assert upstream.paths == ["/v1/chat/completions?v=1"]


async def test_a_model_that_is_registered_again_or_closed_records_anew(model):
    with model.recording(art.Trajectory()) as first:
        pass
    with model.recording(art.Trajectory()) as again:
        assert (again.base_url, again.api_key != first.api_key) == (first.base_url, True)
    await model.register()
    with model.recording(art.Trajectory()) as endpoint:
        await ask(endpoint, HELLO)
    await model.close()
    with pytest.raises(openai.APIConnectionError):
        await ask(endpoint, HELLO)


async def test_a_model_that_is_not_registered_has_nothing_to_record(tmp_path):
    model = art.TrainableModel(
        name="agent", project="p", base_model="b", base_path=tmp_path, sinks=[]
    )
    with pytest.raises(ConfigError, match="not registered"), model.recording(art.Trajectory()):
        pass


async def test_a_missing_openai_package_is_told_with_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    recording = model.recording(art.Trajectory())
    with pytest.raises(ConfigError, match=r"pip install 'art-core\[openai\]'"), recording:
        pass
