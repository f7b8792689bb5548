"""Answers as providers send them, in whatever pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.client.recorder import ReceivedAnswer


def received(*parts, **request):
    answer = ReceivedAnswer(request)
    for part in parts:
        answer.feed(part)
    answer.end()
    return answer


def event(chunk, end=b"\n\n"):
    return b"data: " + json.dumps(chunk).encode() + end


def chunk(delta, finish=None, **more):
    return {"id": "x", "choices": [{"delta": delta, "finish_reason": finish} | more]}


def said(answer):
    return [(choice["index"], choice["message"]["content"]) for choice in choices(answer)]


def choices(answer):
    return answer.completion()["choices"]


DONE = b"data: [DONE]\n\n"
WHOLE = json.dumps(
    {"id": "x", "choices": [{"message": {"role": "assistant", "content": "yes"}}]}
).encode()
STREAM = event(chunk({"content": "y\u2028"})) + event(chunk({"content": "es"}, "stop"), b"\r\n\r\n")


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (WHOLE, "yes"),
        (b"\n " + WHOLE, "yes"),
        (STREAM, "y\u2028es"),
        (b": a comment\n\nevent: message\n" + STREAM + b"data: [DONE]", "y\u2028es"),
        (STREAM.rstrip(), "y\u2028es"),
    ],
    ids=["object", "object after spaces", "stream", "stream with more", "last line without end"],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=3))
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(body, content, cuts):
    places = sorted(min(cut, len(body)) for cut in cuts)
    parts = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    answer = received(*parts)
    assert answer.is_whole
    assert said(answer) == [(0, content)]
    assert [choice["finish_reason"] for choice in choices(answer)] == ["stop"]


def test_an_event_may_have_several_lines():
    assert said(received(b'data: {"choices":\ndata: [{"delta": {"content": "a"}}]}\n\n')) == [
        (0, "a")
    ]


@pytest.mark.parametrize(
    ("parts", "request_", "whole"),
    [
        ([b""], {}, False),
        ([event(chunk({"content": "y"}))], {}, False),
        ([event(chunk({"content": "y"})), b"data: [DONE]\n\n"], {}, True),
        ([event(chunk({"content": "y"}, "stop"))], {"n": 2}, True),
        ([event(chunk({"content": "y"}, "stop")), event(chunk({}, index=1))], {"n": 2}, False),
        ([b"<html>busy</html>"], {}, False),
        ([b'data: {"error": {"message": "busy"}}\n\n'], {}, False),
        ([event(chunk({"content": "y"})), event({"error": {}, "choices": []}), DONE], {}, True),
        ([event(chunk({"content": "y"})), event({"error": {"code": 502}}), DONE], {}, False),
        ([event(chunk({"content": "y"}, "stop")), event({"error": {"code": 1}}), DONE], {}, True),
    ],
)
def test_an_answer_is_whole_when_each_choice_is_finished_or_the_stream_says_so(
    parts, request_, whole
):
    assert received(*parts, **request_).is_whole == whole


def test_before_its_end_a_stream_is_whole_when_all_choices_are_finished():
    answer = ReceivedAnswer({"n": 2})
    for index, whole in ((0, False), (1, True)):
        answer.feed(event(chunk({}, "stop", index=index)))
        assert answer.is_whole == whole


def test_what_is_no_chunk_is_left_out():
    odd = b"data: [1]\n\ndata: {broken\n\ndata: 3\n\n"
    assert said(received(odd + event({"choices": None}) + event({"choices": [None]}) + STREAM)) == [
        (0, "y\u2028es")
    ]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"error": {"message": "busy"}}', []),
        (b'[{"error": {}}]', []),
        (b'{"choices": null}', []),
        (b'{"choices": [{"text": "a"}, {"message": {"content": "b"}}]}', [(1, "b")]),
        (b'{"choices": [{"message": {"content": "a"}, "logprobs": NaN}]}', [(0, "a")]),
        (b'{"choices": [{"message": {"content": "a", "tool_calls": [null]}}]}', [(0, "a")]),
    ],
)
def test_of_an_object_all_choices_with_a_message_are_kept(body, found):
    answer = received(body)
    assert said(answer) == found
    assert all(choice["message"].get("tool_calls") is None for choice in choices(answer))


def test_arguments_of_a_call_become_text():
    calls = [
        {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
        {"id": "b", "function": {"name": "f", "arguments": "{}"}},
        {"id": "c", "type": "custom", "custom": {}},
    ]
    body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": calls}}]})
    (choice,) = choices(received(body.encode()))
    first, second, third = choice["message"]["tool_calls"]
    assert first["function"]["arguments"] == '{"x": 1}'
    assert (second, third) == tuple(calls[1:])
