"""Recorded conversations as trajectories, format by format."""

import json
import math

import pytest

import art_core as art
from art_core.data.store import append_groups
from art_core.reports.traces import read_traces

ASK = {"role": "user", "content": "Is it cold?"}
SAY = {"role": "assistant", "content": "yes"}
ARGUMENTS = {"where": "here"}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)},
}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "snow"}


@pytest.fixture
def read(tmp_path):
    def read(*records, document=False, **options):
        path = tmp_path / "traces.json"
        lines = [json.dumps(record) for record in records]
        path.write_text(json.dumps(list(records)) if document else "\n".join(lines))
        return read_traces(path, **options)

    return read


def only(traces):
    assert traces.problems == []
    (trajectory,) = traces.trajectories
    return trajectory


def test_lines_of_openai_have_an_outcome_if_they_state_one(read):
    traces = read({"messages": [ASK, SAY]}, {"messages": [ASK, SAY], "score": 0.5})
    assert traces.format == "openai"
    first, second = traces.trajectories
    assert first.messages() == [ASK, SAY]
    assert math.isnan(first.reward)
    assert second.reward == 0.5
    assert only(read({"messages": [ASK, SAY], "grade": 2}, reward="grade")).reward == 2.0


def test_logs_of_requests_and_responses_are_read(read):
    answer = {"choices": [{"message": {**SAY, "refusal": None, "tool_calls": []}}], "model": "m"}
    found = only(read({"request": {"messages": [ASK], "tools": None}, "response": answer}))
    assert found.messages() == [ASK, SAY]
    assert found.metadata["model"] == "m"


def test_a_run_keeps_rewards_and_the_metadata_of_groups(tmp_path):
    path = tmp_path / "0001.jsonl"
    attempts = [art.Trajectory(messages_and_choices=[ASK, SAY], reward=r) for r in (0.0, None)]
    append_groups(path, [art.TrajectoryGroup(attempts, metadata={"scenario_id": "s"})])
    first, second = read_traces(path).trajectories
    assert (first.reward, first.metadata["scenario_id"]) == (0.0, "s")
    assert math.isnan(second.reward)


PARTS = {
    "gen_ai.request.model": "m",
    "gen_ai.request.max_tokens": 100,
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
    "gen_ai.input.messages": json.dumps(
        [{"role": "user", "parts": [{"type": "text", "content": "Is it cold?"}]}]
    ),
    "gen_ai.output.messages": json.dumps(
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "look first"},
                    {"type": "blob", "modality": "image"},
                    {"type": "tool_call", "id": "c1", "name": "look", "arguments": ARGUMENTS},
                ],
                "finish_reason": "tool_call",
            }
        ]
    ),
    "gen_ai.tool.definitions": json.dumps([{"type": "function", "name": "look"}]),
}
SECOND = {
    **PARTS,
    "gen_ai.input.messages": json.dumps(
        [
            *json.loads(PARTS["gen_ai.input.messages"]),
            *json.loads(PARTS["gen_ai.output.messages"]),
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c1", "response": "snow"}],
            },
        ]
    ),
    "gen_ai.output.messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": "yes"}]}]
    ),
}
WANTED = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {**CALLS, "reasoning_content": "look first"},
    RESULT,
    SAY,
]


def otlp(value):
    kinds = {str: "stringValue", float: "doubleValue", int: "intValue", bool: "boolValue"}
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp(item) for item in value]}}
    if isinstance(value, dict):
        fields = [{"key": k, "value": otlp(v)} for k, v in value.items()]
        return {"kvlistValue": {"values": fields}}
    return {kinds[type(value)]: str(value) if type(value) is int else value}


def request(*spans):
    return {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "t1",
                                "startTimeUnixNano": str(100 - n),
                                "name": "chat m",
                                "attributes": [
                                    {"key": k, "value": otlp(v)} for k, v in attributes.items()
                                ],
                                "events": [
                                    {
                                        "name": name,
                                        "attributes": [
                                            {"key": k, "value": otlp(v)} for k, v in of.items()
                                        ],
                                    }
                                    for name, of in events
                                ],
                            }
                            for n, (attributes, events) in enumerate(spans)
                        ]
                    }
                ]
            }
        ]
    }


def test_spans_of_a_trace_are_one_conversation_in_the_order_of_their_starts(read):
    score = {"gen_ai.evaluation.name": "correct", "gen_ai.evaluation.score.value": 0.75}
    evaluated = ({}, [("gen_ai.evaluation.result", score)])
    traces = read(request((SECOND, []), (PARTS, []), ({"http.method": "GET"}, []), evaluated))
    assert traces.format == "otel"
    found = only(traces)
    assert found.messages() == WANTED
    assert found.tools == [{"type": "function", "function": {"name": "look"}}]
    assert found.reward == 0.75
    assert found.metadata == {"trace_id": "t1", "model": "m", "imported_from": "otel"}


def test_structured_values_and_details_in_an_event_are_read(read):
    attributes = {k: json.loads(v) if str(v)[0] in "[{" else v for k, v in PARTS.items()}
    traces = read(request(({}, [("gen_ai.client.inference.operation.details", attributes)])))
    assert only(traces).messages() == WANTED[:3]


def test_images_among_the_parts_are_read_in_their_order(read):
    parts = [
        {"type": "blob", "modality": "image", "mime_type": "image/gif", "content": "R0lG"},
        {"type": "text", "content": "or"},
        {"type": "uri", "modality": "image", "uri": "https://example.com/b.png"},
        {"type": "blob", "modality": "audio", "content": "AAAA"},
    ]
    asked = json.dumps([{"role": "user", "parts": parts}])
    found = only(read(request(({**PARTS, "gen_ai.input.messages": asked}, []))))
    assert found.messages()[1]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lG"}},
        {"type": "text", "text": "or"},
        {"type": "image_url", "image_url": {"url": "https://example.com/b.png"}},
    ]


def test_messages_in_events_are_read(read):
    span = {
        "name": "chat",
        "context": {"trace_id": "0x1"},
        "start_time": "2026-01-01T00:00:00Z",
        "attributes": {"gen_ai.request.model": "m"},
        "events": [
            {"name": "gen_ai.system.message", "attributes": {"content": "Be brief."}},
            {"name": "gen_ai.user.message", "attributes": {"content": "Is it cold?"}},
            {"name": "gen_ai.assistant.message", "attributes": {"tool_calls": json.dumps([CALL])}},
            {"name": "gen_ai.tool.message", "attributes": {"id": "c1", "content": "snow"}},
            {"name": "exception", "attributes": {}},
            {
                "name": "gen_ai.choice",
                "attributes": {"index": 0, "message": json.dumps({"content": "yes"})},
            },
        ],
    }
    found = only(read(span, document=True))
    assert found.messages() == [WANTED[0], ASK, CALLS, RESULT, SAY]
    assert math.isnan(found.reward)


def test_numbered_attributes_are_read(read):
    attributes = {
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": "Is it cold?",
        "gen_ai.prompt.1.role": "assistant",
        "gen_ai.prompt.1.content": None,
        "gen_ai.prompt.1.tool_calls.0.id": "c1",
        "gen_ai.prompt.1.tool_calls.0.name": "look",
        "gen_ai.prompt.1.tool_calls.0.arguments": json.dumps(ARGUMENTS),
        "gen_ai.prompt.2.role": "tool",
        "gen_ai.prompt.2.tool_call_id": "c1",
        "gen_ai.prompt.2.content": "snow",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "yes",
        "gen_ai.completion.0.finish_reason": "stop",
        "gen_ai.request.model": "m",
    }
    span = {"name": "openai.chat", "trace_id": "a", "attributes": attributes}
    assert only(read(span)).messages() == [ASK, CALLS, RESULT, SAY]


def test_a_call_without_an_answer_is_a_problem_and_other_traces_are_read(read):
    half = {"name": "chat", "trace_id": "a", "attributes": {"gen_ai.prompt.0.role": "user"}}
    whole = {"name": "chat", "trace_id": "b", "attributes": PARTS}
    traces = read(half, whole, {"name": "http", "trace_id": "c", "attributes": {}})
    assert traces.problems == [
        (1, "ValueError: a call has no recorded prompt or no recorded answer")
    ]
    assert len(traces.trajectories) == 1


def generation(prompt, answer, start, **fields):
    return {
        "type": "GENERATION", "input": prompt, "output": answer, "startTime": start, **fields,
    }  # fmt: skip


def test_a_trace_of_langfuse_has_its_generations_and_its_scores(read):
    called = {"role": "assistant", "content": "", "tool_calls": [{**CALL, "function": {
        "name": "look", "arguments": ARGUMENTS}}]}  # fmt: skip
    trace = {
        "id": "t", "name": "weather", "tags": ["x"], "metadata": {"customer": 7},
        "observations": [
            {"type": "SPAN", "startTime": "0"},
            generation([ASK, {**CALLS, "content": ""}, RESULT], SAY, "2"),
            generation({"messages": [ASK], "tools": [{"type": "function", "function": {
                "name": "look"}}]}, {"choices": [{"message": called}]}, "1", model="m"),
            generation("Sum up.", "cold", "3"),
        ],
        "scores": [{"name": "helpful", "value": 0.5}, {"name": "reward", "value": 1},
                   {"name": "note", "value": "fine"}],
    }  # fmt: skip
    traces = read(trace, document=True)
    assert traces.format == "langfuse"
    found = only(traces)
    assert [m["role"] for m in found.messages()] == ["user", "assistant", "tool", "assistant"]
    assert found.messages()[1]["tool_calls"] == [CALL]
    assert found.additional_histories[0].messages() == [
        {"role": "user", "content": "Sum up."},
        {"role": "assistant", "content": "cold"},
    ]
    assert (found.reward, found.metrics) == (1.0, {"helpful": 0.5})
    assert found.metadata["customer"] == 7
    assert only(read(trace, reward="helpful")).reward == 0.5


def test_observations_and_traces_alone_are_read(read):
    observations = [
        {"traceId": "t", **generation([{"role": "human", "content": "Is it cold?"}], "yes", "1")},
        {"traceId": "u", **generation([ASK], {"role": "assistant", "content": {"cold": 1}}, "1")},
    ]
    first, second = read(*observations).trajectories
    assert first.messages() == [ASK, SAY]
    assert second.messages()[1]["content"] == '{"cold": 1}'
    trace = {"id": "t", "projectId": "p", "input": "Is it cold?", "output": "yes"}
    assert only(read({"data": [trace], "meta": {}})).messages() == [ASK, SAY]
    problems = read({"id": "t", "projectId": "p", "input": None, "output": 5}).problems
    assert problems == [(1, "a generation has no input or no output")]


def test_what_cannot_be_read_is_named(read, tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps({"messages": [ASK, SAY]}) + '\n[1]\n{"messages": [\n\n{"x": 1}\n')
    traces = read_traces(path)
    assert [line for line, _ in traces.problems] == [2, 3, 5]
    path.write_text("[1, 2]")
    with pytest.raises(art.ConfigError, match="holds no JSON objects"):
        read_traces(path)
    path.write_text("{")
    with pytest.raises(art.ConfigError, match="holds no JSON objects: line 1: it is not JSON"):
        read_traces(path)
    with pytest.raises(art.ConfigError, match="format .* is not known: .* has a, b.*Give --format"):
        read({"b": 1, "a": 2})
