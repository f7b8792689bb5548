"""The sink at a server that answers in Langfuse's shapes, beside Langfuse's own SDK."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import UTC, datetime, timedelta

import pytest

import art_core as art
from art_core.reports.traces import read_traces
from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract, row, run_in
from art_langfuse import langfuse_sink
from trace_server import attributes, rows_of, trace_server

ASK = {"role": "user", "content": "Is it cold?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
TOOL = {"type": "function", "function": {"name": "look"}}
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def server(monkeypatch):
    with trace_server() as server:
        monkeypatch.setenv("LANGFUSE_BASE_URL", server.url)
        monkeypatch.setenv("LANGFUSE_PUBLIC_KEY", "pk-lf-1")
        monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-2")
        monkeypatch.delenv("LANGFUSE_TRACING_ENVIRONMENT", raising=False)
        yield server


class TestSink(SinkContract):
    factory = "art_langfuse:langfuse_sink"

    @pytest.fixture
    def make_sink(self, server):
        return langfuse_sink(timeout_s=5.0).create

    @pytest.fixture
    def read_back(self, server):
        return lambda run: rows_of(server, run)


class TestPlugin(PluginContract):
    module = "art_langfuse.plugin"
    heavy = (*PluginContract.heavy, "opentelemetry", "requests", "langfuse")


def choice(message, reason="stop"):
    given = {"finish_reason": reason, "message": {"role": "assistant", **message}}
    return given | {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5]}


def attempt(reward=0.75, **more):
    items = [
        ASK,
        choice({"content": None, "tool_calls": [CALL]}, "tool_calls"),
        {"role": "tool", "tool_call_id": "c1", "content": "snow"},
        choice({"content": "yes"}),
    ]
    times = {"start_time": START, "end_time": START + timedelta(seconds=3)}
    given = {"messages_and_choices": items, "tools": [TOOL], "reward": reward}
    return art.Trajectory(**times | given | more)


async def logged(tmp_path, groups, **options):
    sink = langfuse_sink(**options)
    model = art.Model(name="agent", project="p", base_path=tmp_path, sinks=[sink])
    model.metrics_builder("train").add_cost("train/judge", 0.25)
    await model.log(groups, split="train", step=1)
    assert (await model.close())["langfuse"].error is None


def observations(server):
    """The spans as observations of Langfuse: its attributes by their last names."""
    found = {}
    for _, span in server.spans():
        of = attributes(span.attributes)
        prefix = "langfuse.observation."
        own = {k.removeprefix(prefix): v for k, v in of.items() if k.startswith(prefix)}
        found.setdefault(own["type"], []).append((span, of, own))
    return found


async def test_an_attempt_is_a_trace_with_generations_and_a_score(server, tmp_path):
    await logged(tmp_path, [art.TrajectoryGroup([attempt(), ValueError("no")])])
    found = observations(server)
    (agent, about, root), (_, _, broken) = found["agent"]
    assert about["session.id"] == "p/agent"
    assert about["langfuse.trace.name"] == "invoke_agent agent"
    assert about["langfuse.trace.tags"] == ["train", "attempt"]
    assert json.loads(root["input"]) == {"messages": [ASK], "tools": [TOOL]}
    assert json.loads(root["output"]) == {"role": "assistant", "content": "yes"}
    assert (broken["level"], broken["status_message"]) == ("ERROR", "ValueError: no")
    first, second = found["generation"]
    assert json.loads(first[2]["usage_details"]) == {"input": 3, "output": 2}
    assert (first[2]["model.name"], first[1]["session.id"]) == ("agent", "p/agent")
    assert len(json.loads(second[2]["input"])["messages"]) == 3
    ((_, _, tool),) = found["tool"]
    assert (json.loads(tool["input"]), json.loads(tool["output"])) == ({"at": "sea"}, "snow")
    ((_, _, step),) = found["span"]
    assert json.loads(step["cost_details"]) == {"train/judge": 0.25, "total": 0.25}
    (score,) = server.scores.values()
    assert (score["traceId"], score["name"], score["value"]) == (
        agent.trace_id.hex(), "reward", 0.75,
    )  # fmt: skip
    assert (score["dataType"], "observationId" in score) == ("NUMERIC", False)


async def test_a_turn_reward_is_a_score_of_its_generation(server, tmp_path):
    one = attempt(0.5, turn_rewards=[0.125, 0.25])
    await logged(tmp_path, [art.TrajectoryGroup([one])])
    spans = [span.span_id.hex() for span, _, _ in observations(server)["generation"]]
    turns = [s for s in server.scores.values() if s["name"] == "turn_reward"]
    assert [(s["observationId"], s["value"]) for s in turns] == [
        (spans[0], 0.125),
        (spans[1], 0.25),
    ]


async def test_messages_stay_at_home_on_request(server, tmp_path):
    await logged(tmp_path, [art.TrajectoryGroup([attempt()])], content=False)
    assert b"snow" not in b"".join(r.SerializeToString() for r in server.traces)
    assert len(server.scores) == 1


async def test_an_export_is_read_back_as_the_same_conversation(server, tmp_path):
    """The fields of Langfuse's export have the values of these attributes."""
    one = attempt()
    await logged(tmp_path, [art.TrajectoryGroup([one])])
    records = [
        {
            "id": span.span_id.hex(),
            "traceId": span.trace_id.hex(),
            "type": "GENERATION",
            "startTime": datetime.fromtimestamp(span.start_time_unix_nano / 1e9, UTC).isoformat(),
            "input": json.loads(own["input"]),
            "output": json.loads(own["output"]),
            "model": own["model.name"],
        }
        for span, _, own in observations(server)["generation"]
    ]
    scores = list(server.scores.values())
    trace = {"id": records[0]["traceId"], "observations": records, "scores": scores, "input": ""}
    file = tmp_path / "export.jsonl"
    file.write_text(json.dumps(trace))
    traces = read_traces(file)
    assert (traces.format, traces.problems) == ("langfuse", [])
    (found,) = traces.trajectories
    assert (found.messages(), found.tools, found.reward) == (one.messages(), one.tools, 0.75)


async def test_scores_go_by_the_older_api_where_lists_are_refused(server, tmp_path):
    server.knows_lists = False
    groups = [art.TrajectoryGroup([attempt() for _ in range(70)]) for _ in range(3)]
    await logged(tmp_path, groups)
    assert len(server.scores) == 210
    paths = [path for path, _ in server.requests if "otel" not in path]
    assert paths == ["/api/public/scores", *["/api/public/ingestion"] * 3]


def test_what_comes_again_has_the_same_ids(server, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGFUSE_TRACING_ENVIRONMENT", "lab")
    run = run_in(tmp_path)
    folder = run.run_dir / "trajectories" / "train"
    folder.mkdir(parents=True)
    group = art.TrajectoryGroup([attempt(), attempt()])
    (folder / "0001.jsonl").write_text(json.dumps(group.to_dict(), default=str) + "\n")
    for _ in range(2):
        sink = langfuse_sink().create()
        sink.open(run)
        sink.write([row(1, reward__mean=0.75)])
        sink.close(run)
    assert (len(server.spans()), len(server.scores)) == (9, 2)
    assert {score["environment"] for score in server.scores.values()} == {"lab"}
    assert {of["langfuse.environment"] for _, of, _ in observations(server)["agent"]} == {"lab"}


def test_a_server_that_refuses_raises_and_names_its_reason(server, tmp_path, caplog):
    run = run_in(tmp_path)
    folder = run.run_dir / "trajectories" / "train"
    folder.mkdir(parents=True)
    group = art.TrajectoryGroup([attempt()])
    (folder / "0001.jsonl").write_text(json.dumps(group.to_dict(), default=str) + "\n")
    sink = langfuse_sink().create()
    sink.open(run)
    server.refuses["/api/public/scores"] = 401
    with pytest.raises(art.SinkError, match="HTTP 401 .*not today"):
        sink.write([row(1)])
    server.refuses["/api/public/otel/v1/traces"] = 403
    with pytest.raises(art.SinkError, match="HTTP 403 Forbidden"):
        sink.write([row(1)])
    server.refuses.clear()
    sink.write([row(1)])
    assert (len(server.scores), len(server.spans())) == (1, 5)


def test_scores_that_are_refused_for_good_are_named(server, tmp_path, caplog):
    sink = langfuse_sink().create()
    sink.open(run_in(tmp_path))
    with caplog.at_level(logging.WARNING):
        sink.destination._score([{"id": "1", "name": "reward", "value": "high"}])
    assert caplog.messages == ["Langfuse refused 1 scores for good: reward is no number"]


def test_without_keys_the_reason_is_named(monkeypatch, tmp_path):
    for name in ("PUBLIC_KEY", "SECRET_KEY"):
        monkeypatch.delenv(f"LANGFUSE_{name}", raising=False)
    assert not langfuse_sink().default
    with pytest.raises(art.ConfigError, match="LANGFUSE_PUBLIC_KEY"):
        langfuse_sink().create().open(run_in(tmp_path))


def test_a_sink_names_its_options_without_keys_and_is_made_again_from_them(server):
    spec = langfuse_sink("https://lf.example.com", public_key="pk", secret_key="s3cret")
    assert spec.options == {"base_url": "https://lf.example.com"}
    assert spec.factory(**spec.options).options == spec.options
    assert "s3cret" not in repr(spec.create())
    assert langfuse_sink().default and langfuse_sink().options == {}


@pytest.fixture
def sdk():
    return pytest.importorskip("langfuse", reason="needs langfuse: pip install langfuse")


async def test_the_requests_are_those_of_langfuses_own_sdk(sdk, server, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = sdk.Langfuse(public_key="pk-lf-1", secret_key="sk-lf-2", base_url=server.url)
        with client.start_as_current_observation(
            name="chat",
            as_type="generation",
            model="m",
            input=[ASK],
            output={"role": "assistant", "content": "yes"},
            usage_details={"input": 3, "output": 2},
            cost_details={"total": 0.25},
            level="ERROR",
            status_message="x",
        ) as span:
            trace, observation = span.trace_id, span.id
        client.create_score(
            name="reward", value=1, trace_id=trace, observation_id=observation, data_type="NUMERIC"
        )
        client.flush()
        client.shutdown()
    theirs = of_requests(server)
    for kept in (server.requests, server.traces, server.scores):
        kept.clear()
    one = attempt(0.5, turn_rewards=[0.125, 0.25])
    await logged(tmp_path, [art.TrajectoryGroup([one, ValueError("no")])])
    ours = of_requests(server)
    assert ours["requests"] == theirs["requests"]
    assert ours["score"] - {"environment"} == theirs["score"] - {"environment"}
    assert theirs["observation"] - {"langfuse.environment"} <= ours["observation"]
    names = vars(sdk.LangfuseOtelSpanAttributes)
    known = tuple(names[name] for name in names if name.isupper())
    unknown = {key for key in ours["observation"] if not key.startswith(known)}
    assert {key.partition(".")[0] for key in unknown} == {"art", "gen_ai", "error"}


def of_requests(server):
    """What the requests have in common with each other: paths, keys, and names of fields."""
    headers = ("authorization", "x-langfuse-ingestion-version")
    given = [(path, {k.lower(): v for k, v in of.items()}) for path, of in server.requests]
    spans = [set(attributes(span.attributes)) for _, span in server.spans()]
    return {
        "requests": {(path, *(of.get(name) for name in headers)) for path, of in given},
        "observation": {k for of in spans for k in of if "internal" not in k},
        "score": {key for score in server.scores.values() for key in score},
    }
