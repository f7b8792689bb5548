"""Chunks put together again, also those that other servers send."""

from art_core.endpoint.stream import joined


def chunk(delta, **more):
    return {"id": "x", "model": "agent@3", "choices": [{"index": 0, "delta": delta} | more]}


def test_text_log_probs_and_token_ids_follow_each_other():
    entries = [{"token": "y", "logprob": -0.5}, {"token": "es", "logprob": -0.25}]
    whole = joined(
        [
            {"prompt_token_ids": [1, 2]} | chunk({"role": "assistant", "content": ""}),
            chunk({"content": "y"}, logprobs={"content": entries[:1]}, token_ids=[7]),
            chunk({"content": "es"}, logprobs={"content": entries[1:]}, token_ids=[8]),
            chunk({}, finish_reason="stop"),
            {"id": "x", "choices": [], "usage": {"total_tokens": 4}},
        ]
    )
    assert whole == {
        "id": "x",
        "model": "agent@3",
        "object": "chat.completion",
        "prompt_token_ids": [1, 2],
        "usage": {"total_tokens": 4},
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "yes"},
                "logprobs": {"content": entries},
                "token_ids": [7, 8],
                "finish_reason": "stop",
            }
        ],
    }


def test_choices_that_come_by_turns_are_kept_apart_and_in_order():
    pieces = [(1, "a"), (0, "b"), (1, "c")]
    chunks = [{"choices": [{"index": i, "delta": {"content": text}}]} for i, text in pieces]
    assert [c["message"]["content"] for c in joined(chunks)["choices"]] == ["b", "ac"]


def test_tool_calls_come_whole_or_in_pieces():
    def piece(index, **more):
        return chunk({"tool_calls": [{"index": index, **more}]})

    whole = joined(
        [
            piece(0, id="c1", type="function", function={"name": "f", "arguments": '{"x": 1}'}),
            piece(1, id="c2", function={"name": "g"}),
            piece(1, function={"arguments": "{"}),
            piece(1, function={"arguments": "}"}),
            piece(1),
        ]
    )
    calls = whole["choices"][0]["message"]["tool_calls"]
    assert [(c["id"], *c["function"].values()) for c in calls] == [
        ("c1", "f", '{"x": 1}'),
        ("c2", "g", "{}"),
    ]


def calls_of(*deltas):
    (choice,) = joined([chunk({"tool_calls": calls}) for calls in deltas])["choices"]
    return [(c.get("id"), *c["function"].values()) for c in choice["message"]["tool_calls"]]


def call(name=None, arguments=None, **more):
    return {"function": {"name": name, "arguments": arguments}} | more


def test_tool_calls_may_have_no_index():
    whole = call("f", "{}", id="a")
    assert calls_of([whole]) == [("a", "f", "{}")]
    assert calls_of([whole, whole | {"id": "b"}]) == [("a", "f", "{}"), ("b", "f", "{}")]
    assert calls_of([whole], [whole | {"id": "b"}]) == [("a", "f", "{}"), ("b", "f", "{}")]
    assert calls_of([call("f", "{", id="a")], [call(None, "}")]) == [("a", "f", "{}")]
    assert calls_of([call("f", "{", id="a")], [call(None, "}", id="a")]) == [("a", "f", "{}")]
    assert calls_of([call("f", "{}")], [call("g", "{}")]) == [(None, "f", "{}"), (None, "g", "{}")]


def test_arguments_may_be_an_object():
    assert calls_of([call("f", {"x": 1})]) == [(None, "f", '{"x": 1}')]


def test_the_index_of_tool_calls_may_begin_anywhere():
    assert calls_of([call("g", "{}", index=3)], [call("f", "{}", index=1), None]) == [
        (None, "f", "{}"),
        (None, "g", "{}"),
    ]


def test_odd_chunks_are_taken_for_what_they_hold():
    whole = joined(
        [
            {"id": "x", "choices": None, "usage": None},
            {"id": "y", "choices": [None, {"delta": None}]},
            chunk({"content": "a", "role": "assistant", "type": "text"}, finish_reason="stop"),
            chunk({"content": [{"type": "text", "text": "b"}, {"type": "image"}], "role": None}),
            chunk({"reasoning_details": [{"text": "c"}], "seed": 4, "content": None}),
            chunk({"reasoning_details": [{"text": "d"}], "role": "assistant", "seed": None}),
            chunk(None, message={"content": "e"}, logprobs={"content": None, "refusal": [1]}),
            {"id": "x", "choices": [], "usage": {"total_tokens": 4}},
        ]
    )
    (choice,) = whole["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "abe",
        "type": "text",
        "reasoning_details": [{"text": "c"}, {"text": "d"}],
        "seed": 4,
    }
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", {"refusal": [1]})
    assert (whole["id"], whole["usage"]) == ("x", {"total_tokens": 4})
