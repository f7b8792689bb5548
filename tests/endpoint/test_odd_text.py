"""Text that JSON cannot hold, and values that few readers take."""

from __future__ import annotations

import pytest

from art_core.endpoint.http import json_bytes
from art_core.endpoint.strict_json import MAX_DEPTH, json_text, read_json, whole_json

HALF = "\ud83d"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


async def said(ask, stream, **options):
    if not stream:
        return (await ask(**options)).choices[0].message.content
    content = ""
    async for chunk in await ask(stream=True, **options):
        content += chunk.choices[0].delta.content or ""
    return content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"tools": TOOLS}])
async def test_halves_of_characters_and_nuls_are_served(
    engine, tokenizer, ask, monkeypatch, stream, options
) -> None:
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **_: "".join(map(chr, ids)).replace("!", HALF)
    )
    tokenizer.all_special_ids = [257]
    engine.lines = [[*b"a!\0b", 257]]
    assert await said(ask, stream, **options) == "a\ufffd\0b"


@pytest.mark.parametrize(
    "content", [b'"a\\ud83d \\u0000"', '"a\ud83d \\u0000"'.encode(errors="surrogatepass")]
)
async def test_a_half_of_a_character_in_a_request_is_replaced(http, tokenizer, content) -> None:
    body = b'{"model": "agent", "messages": [{"role": "user", "content": %b}]}' % content
    answer = await http.post("/chat/completions", content=body)
    assert answer.status_code == 200
    heard = tokenizer.seen[0][0][0]["content"].replace("\ufffd\ufffd\ufffd", "\ufffd")
    assert heard == "a\ufffd \0"


async def test_other_broken_bodies_are_refused(http) -> None:
    for body in (b'{"model": NaN}', b'{"model": "\xff"}', b'{"a":' * 3000, b'{"a": "\\ud83d"'):
        answer = await http.post("/chat/completions", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_an_error_with_half_a_character_is_answered(refused, tokenizer, monkeypatch) -> None:
    def odd(*_, **__):
        raise ValueError(f"odd {HALF}")

    monkeypatch.setattr(tokenizer, "apply_chat_template", odd)
    status, error = await refused()
    assert status == 400 and "odd ?" in error["message"]


async def test_a_failing_tokenizer_is_no_fault_of_the_request(
    refused, tokenizer, monkeypatch
) -> None:
    """Only what the chat template raises is about the messages."""

    def broken(*_, **__):
        raise ValueError("no such byte")

    monkeypatch.setattr(tokenizer, "encode", broken)
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *_, tokenize, **__: "text")
    status, error = await refused()
    assert (status, error["code"]) == (500, "internal_error")


async def test_a_tokenizer_that_fails_at_a_text_that_the_template_renders_is_no_bad_request(
    refused, tokenizer, monkeypatch
) -> None:
    def broken(conversation, tokenize, **_):
        if tokenize:
            raise ValueError("no such byte")
        return "text"

    monkeypatch.setattr(tokenizer, "apply_chat_template", broken)
    status, error = await refused()
    assert (status, error["code"]) == (500, "internal_error")


class PanicError(BaseException):
    """What a tokenizer in Rust raises when it panics."""


async def test_a_tokenizer_that_panics_at_an_answer_ends_the_request(
    refused, tokenizer, monkeypatch
) -> None:
    def panics_at_the_answer(ids, **_):
        if list(ids) == [*b"o"]:
            raise PanicError("at the core")
        return ""

    monkeypatch.setattr(tokenizer, "decode", panics_at_the_answer)
    status, error = await refused()
    assert status == 500 and "PanicError: at the core" in error["message"]


async def test_a_deep_call_in_the_history_stays_the_text_that_it_was(ask, tokenizer) -> None:
    deep = '{"a": ' + "[" * 3000 + "]" * 3000 + "}"
    call = {"id": "a", "type": "function", "function": {"name": "add", "arguments": deep}}
    await ask(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert tokenizer.seen[0][0][0]["tool_calls"][0]["function"]["arguments"] == deep


def test_strict_json_is_finite_and_not_too_deep() -> None:
    assert read_json(' {"a": 1.5} b', 1) == ({"a": 1.5}, 11)
    assert whole_json(" [1, true, null] ") == [1, True, None]
    assert whole_json("[1] 2") is whole_json("NaN") is whole_json("1e400") is None
    for depth in (MAX_DEPTH, MAX_DEPTH + 1):
        deep = whole_json('{"a":' * depth + "1" + "}" * depth)
        assert (deep is not None) == (depth == MAX_DEPTH)
    assert json_text({"a": HALF, "é": 1}) == '{"a": "\ufffd", "é": 1}'


def test_what_json_cannot_hold_is_replaced() -> None:
    assert json_bytes({"a": HALF}) == b'{"a":"?"}'
