"""Chunks put together again, also those that other servers send."""

from art_core.recording.stream import joined


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
