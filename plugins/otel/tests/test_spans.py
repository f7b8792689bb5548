"""The traces of real runs at a receiver of OTLP, and the way back into trajectories."""

from __future__ import annotations

import inspect
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

import art_core as art
from art_core.reports.traces import read_traces
from art_core.testing.sink import row, run_in
from art_langfuse import langfuse_sink
from art_otel import otel_sink
from art_otel.sink import TraceSink
from trace_server import attributes, trace_server

ASK = {"role": "user", "content": "Is it cold in größe 1?"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"where": "here"}'},
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "snow"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def choice(message, prompt=3, sampled=2, reason="stop"):
    ids, answer = list(range(prompt)), list(range(sampled))
    logprobs = {"content": [{"token": "t", "logprob": -0.5} for _ in answer]}
    return {
        "index": 0,
        "finish_reason": reason,
        "message": {"role": "assistant", **message},
        "prompt_token_ids": ids,
        "token_ids": answer,
        "logprobs": logprobs,
        "policy_version": 1,
    }


def attempt(reward=0.75, **more):
    items = [
        {"role": "system", "content": "Be brief."},
        ASK,
        choice({"content": None, "tool_calls": [CALL]}, 5, 4, "tool_calls"),
        RESULT,
        choice({"content": "yes", "reasoning_content": "snow is cold"}, 12, 1),
    ]
    given = {
        "messages_and_choices": items,
        "tools": [TOOL],
        "reward": reward,
        "metrics": {"correct": True, "length": 12},
        "metadata": {"seed": 7, "deep": {"a": [1]}},
        "start_time": START,
        "end_time": START + timedelta(seconds=3),
    }
    return art.Trajectory(**given | more)


@pytest.fixture
def server():
    with trace_server() as server:
        yield server


@pytest.fixture
def sent(server, tmp_path):
    """Log groups of a model with the sink; return its spans by name, the parsed attributes too."""

    async def send(groups, *, split="train", **options):
        sink = otel_sink(server.url, **{"content": True} | options)
        model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[sink])
        await model.log(groups, split=split, step=1)
        assert (await model.close())["otel"].error is None
        return named(server)

    return send


def named(server):
    found = {}
    for _, span in server.spans():
        found.setdefault(span.name, []).append((span, attributes(span.attributes)))
    return found


def only(items):
    (item,) = items
    return item


async def test_an_attempt_is_a_trace_of_its_calls_and_tools(sent):
    group = art.TrajectoryGroup([attempt()], metadata={"scenario_id": "s1"})
    spans = await sent([group])
    root, about = only(spans["invoke_agent agent"])
    first, second = spans["chat agent"]
    tool, looked = only(spans["execute_tool look"])
    for span in (first[0], tool, second[0]):
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
    assert not root.parent_span_id
    assert about["gen_ai.operation.name"] == "invoke_agent"
    assert (about["art.step"], about["art.split"], about["art.group"]) == (1, "train", 0)
    assert (about["art.reward"], about["art.metric.length"]) == (0.75, 12.0)
    assert about["art.group.scenario_id"] == "s1"
    assert (about["art.metadata.seed"], about["art.metadata.deep"]) == (7, '{"a": [1]}')
    assert looked["gen_ai.operation.name"] == "execute_tool"
    assert looked["gen_ai.tool.call.arguments"] == '{"where": "here"}'
    assert looked["gen_ai.tool.call.result"] == "snow"
    usage = [
        (of["gen_ai.usage.input_tokens"], of["gen_ai.usage.output_tokens"])
        for _, of in (first, second)
    ]
    assert usage == [(5, 4), (12, 1)]
    assert first[1]["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert json.loads(second[1]["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "snow is cold"},
                {"type": "text", "content": "yes"},
            ],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(first[1]["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "tool_call", "id": "c1", "name": "look", "arguments": {"where": "here"}}
    ]
    assert json.loads(second[1]["gen_ai.input.messages"])[3] == {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "c1", "response": "snow"}],
    }


async def test_times_are_those_of_the_attempt_in_equal_shares(sent):
    spans = await sent([art.TrajectoryGroup([attempt()])])
    root, _ = only(spans["invoke_agent agent"])
    begin = int(START.timestamp()) * 10**9
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (begin, begin + 3 * 10**9)
    children = [*spans["chat agent"], *spans["execute_tool look"]]
    assert {of["art.times"] for _, of in children} == {"estimated"}
    shares = sorted((span.start_time_unix_nano - begin) / 1e9 for span, _ in children)
    assert shares == [0.0, 1.0, 2.0]


async def test_a_row_links_to_its_attempts_and_has_its_costs(server, tmp_path):
    sink = otel_sink(server.url)
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[sink])
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    group = art.TrajectoryGroup([attempt(), attempt(0.25)])
    logged = await model.log([group], split="train", step=1)
    await model.log(metrics={"loss/train": 0.5}, split="train", step=1)
    await model.close()
    spans = named(server)
    (first, about), (second, _) = spans["train step"]
    attempts = {span.span_id for span, _ in spans["invoke_agent agent"]}
    assert {link.span_id for link in first.links} == attempts
    assert len(attempts) == 2 and not second.links
    assert about["art.metric.costs/train/judge"] == 0.25
    assert about["art.metric.reward/mean"] == logged.metrics["reward/mean"] == 0.5


async def test_messages_stay_at_home_unless_asked_for(sent, server):
    await sent([art.TrajectoryGroup([attempt()])], content=None)
    keys = {key for of in named(server).values() for _, about in of for key in about}
    assert not keys & {"gen_ai.input.messages", "gen_ai.output.messages"}
    assert not {key for key in keys if key.startswith("gen_ai.tool.call.") and key[-2:] != "id"}
    assert b"snow" not in b"".join(r.SerializeToString() for r in server.traces)


async def test_the_standard_variable_asks_for_messages(sent, monkeypatch):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    spans = await sent([art.TrajectoryGroup([attempt()])], content=None)
    assert "gen_ai.input.messages" in spans["chat agent"][0][1]


async def test_a_failure_is_a_trace_with_its_exception(sent):
    group = art.TrajectoryGroup([attempt(), ValueError("no answer")])
    spans = await sent([group])
    failed, about = spans["invoke_agent agent"][1]
    assert (failed.status.code, failed.status.message) == (2, "ValueError: no answer")
    assert (about["error.type"], about["art.failure"], about["art.attempt"]) == (
        "ValueError", "raised", 1,
    )  # fmt: skip
    event = only(failed.events)
    assert event.name == "exception"
    assert attributes(event.attributes)["exception.message"] == "no answer"


async def test_a_turn_reward_is_on_its_call(sent):
    one = attempt(0.5, turn_rewards=[0.125, 0.25])
    spans = await sent([art.TrajectoryGroup([one])])
    assert [of["art.turn_reward"] for _, of in spans["chat agent"]] == [0.125, 0.25]
    assert only(spans["invoke_agent agent"])[1]["art.reward"] == 0.875


async def test_an_unknown_reward_is_left_out(sent):
    spans = await sent([art.TrajectoryGroup([attempt(None, metrics={})])], split="val")
    root, about = only(spans["invoke_agent agent"])
    assert "art.reward" not in about and not root.events


def read_back(server, tmp_path):
    file = tmp_path / "traces.json"
    file.write_text("\n".join(map(json.dumps, server.documents())))
    traces = read_traces(file)
    assert (traces.format, traces.problems) == ("otel", [])
    return traces.trajectories


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
MORE = {"role": "tool", "tool_call_id": "c2", "content": '{"ice": 1}'}
OTHER = {**CALL, "id": "c2", "function": {"name": "look", "arguments": '{"b":1}'}}


YES = choice({"content": "yes"})


@pytest.mark.parametrize(
    "items",
    [
        [ASK, YES],
        [ASK, {"role": "assistant", "content": "yes"}],
        [ASK, choice({"content": "", "tool_calls": [CALL, OTHER]}), RESULT, MORE, YES],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, YES],
        [ASK, choice({"content": None, "tool_calls": [OTHER]})],
    ],
)  # fmt: skip
async def test_what_is_sent_is_read_back_as_the_same_conversation(sent, server, tmp_path, items):
    one = attempt(messages_and_choices=items)
    await sent([art.TrajectoryGroup([one])])
    found = only(read_back(server, tmp_path))
    assert found.messages() == one.messages()
    assert found.tools == one.tools
    assert (found.reward, found.metrics) == (one.reward, one.metrics)
    assert found.metadata["model"] == "agent"


async def test_conversations_of_sub_agents_are_read_back_beside_the_main_one(
    sent, server, tmp_path
):
    helper = art.History(
        messages_and_choices=[{"role": "user", "content": "z?"}, choice({"content": "z"})]
    )
    tries = [attempt(reward, additional_histories=[helper]) for reward in (0.0, 1.0)]
    tries[1].start_time += timedelta(seconds=1)
    await sent([art.TrajectoryGroup(tries)])
    found = sorted(read_back(server, tmp_path), key=lambda one: one.reward)
    assert [one.reward for one in found] == [0.0, 1.0]
    for one, wanted in zip(found, tries, strict=True):
        assert [h.messages() for h in one.histories()] == [h.messages() for h in wanted.histories()]
        assert [h.tools for h in one.histories()] == [h.tools for h in wanted.histories()]


async def test_what_is_sent_again_has_the_same_ids(server, tmp_path):
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[])
    tries = [attempt(), attempt(), RuntimeError("x")]
    logged = await model.log([art.TrajectoryGroup(tries)], split="train", step=1)
    await model.close()
    run = art.RunInfo(project="p", name="agent", run_dir=model.run_dir, sink="otel")
    counts = []
    for _ in range(2):
        sink = otel_sink(server.url).create()
        sink.open(run)
        sink.write([logged])
        sink.write([logged])
        sink.close(run)
        counts.append(len(server.spans()))
    assert counts == [10, 10]  # a row, two attempts of three children, a failure
    other = run_in(tmp_path, "other")
    sink.open(attrs.evolve(run, run_dir=other.run_dir))
    sink.write([logged])
    assert len(server.spans()) == 11


def test_a_collector_that_is_down_or_refuses_raises_and_names_its_reason(
    server, tmp_path, caplog, capfd
):
    run = run_in(tmp_path)
    sink = otel_sink(server.url, timeout_s=0.5).create()
    sink.open(run)
    server.refuses["/v1/traces"] = 401
    with pytest.raises(art.SinkError, match=r"HTTP 401 Unauthorized: .*not today"):
        sink.write([row(1)])
    server.refuses["/v1/traces"] = 503
    with pytest.raises(art.SinkError, match="HTTP 503"):
        sink.write([row(1)])
    nowhere = otel_sink("http://127.0.0.1:9", timeout_s=0.5).create()
    nowhere.open(run)
    with pytest.raises(art.SinkError, match="refused"):
        nowhere.write([row(1)])
    assert caplog.messages == []  # the delivery reports the outage, once
    server.refuses.clear()
    again = otel_sink(server.url).create()
    again.open(run)
    again.write([row(1)])
    assert len(server.spans()) == 1


def test_spans_that_a_collector_refuses_for_good_are_named_and_not_sent_again(
    server, tmp_path, caplog
):
    run = run_in(tmp_path)
    sink = otel_sink(server.url).create()
    sink.open(run)
    server.rejected = 1
    with caplog.at_level(logging.WARNING):
        sink.write([row(1)])
    assert caplog.messages == ["OTLP: the collector refused 1 spans: too old"]


async def test_rows_come_while_the_collector_is_away_and_follow_later(tmp_path):
    with trace_server() as server:
        port = server.server_port
    sink = otel_sink(f"http://127.0.0.1:{port}", timeout_s=0.3)
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[sink])
    await model.log([art.TrajectoryGroup([attempt()])], split="train", step=1)
    assert (await model.close(1.0))["otel"].undelivered == 1
    with trace_server() as server:
        again = otel_sink(server.url)
        later = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[again])
        _ = later.run
        assert (await later.close())["otel"].undelivered == 0
        assert len(server.spans()) == 5


@attrs.define
class Parts:
    """A destination that takes `left` requests and then fails once."""

    left: int
    requests: list = attrs.field(factory=list)

    def open(self, run):
        pass

    def send(self, spans, *, content):
        if self.left == 0:
            self.left = 1_000
            raise ConnectionError("down")
        self.left -= 1
        self.requests.append([span.id for span in spans])

    def send_rows(self, rows):
        pass


async def test_a_large_step_goes_in_parts_and_a_failure_repeats_no_attempt(tmp_path):
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[])
    groups = [art.TrajectoryGroup([attempt() for _ in range(8)]) for _ in range(50)]
    logged = await model.log(groups, split="train", step=1)
    await model.close()
    sink = TraceSink(Parts(left=2))
    sink.open(art.RunInfo(project="p", name="agent", run_dir=model.run_dir))
    with pytest.raises(ConnectionError):
        sink.write([logged])
    sink.write([logged])
    requests = sink.destination.requests
    assert [len(spans) for spans in requests] == [500, 500, 500, 101]
    assert len({span for spans in requests for span in spans}) == 400 * 4 + 1


def test_headers_and_service_come_from_options_and_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "training")
    sink = otel_sink(server.url, headers={"X-Scope-OrgID": "team"}).create()
    sink.open(run_in(tmp_path))
    sink.write([row(1)])
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=other")
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    sink = otel_sink().create()
    sink.open(run_in(tmp_path, "two"))
    sink.write([row(1)])
    given = [{k.lower(): v for k, v in headers.items()} for _, headers in server.requests]
    assert [headers["x-scope-orgid"] for headers in given] == ["team", "other"]
    assert [about["service.name"] for about, _ in server.spans()] == ["training", "art-core"]


def test_every_option_is_described():
    page = (Path(__file__).parents[3] / "docs" / "sinks.md").read_text()
    for make in (otel_sink, langfuse_sink):
        part = page.partition(f"| option of `{make.__name__}` |")[2].partition("\n\n")[0]
        assert [n for n in inspect.signature(make).parameters if f"`{n}`" not in part] == []


def test_a_sink_names_its_options_without_headers_and_is_made_again_from_them(monkeypatch):
    spec = otel_sink("http://c:4318", headers={"authorization": "Bearer x"}, content=True)
    assert spec.options == {"endpoint": "http://c:4318", "content": True}
    assert spec.factory(**spec.options).options == spec.options
    assert otel_sink().options == {}
    assert "Bearer" not in repr(spec.create())
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not otel_sink().default
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert otel_sink().default


async def test_attempts_that_cannot_be_read_do_not_stop_the_rows(server, tmp_path, caplog):
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[])
    logged = await model.log([art.TrajectoryGroup([attempt()])], split="train", step=1)
    await model.close()
    (model.run_dir / "trajectories" / "train" / "0001.jsonl").write_text('{"failures": []}\n')
    sink = otel_sink(server.url).create()
    sink.open(art.RunInfo(project="p", name="agent", run_dir=model.run_dir))
    sink.write([logged])
    assert [span.name for _, span in server.spans()] == ["train step"]
    assert "not sent as traces" in caplog.text
