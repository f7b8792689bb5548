"""Thoughts: apart in answers, at their place in prompts."""

from __future__ import annotations

import pytest

from art_core.endpoint import thoughts as module
from art_core.endpoint.thoughts import Spellings, Thoughts, in_content, opened_by

SAID = "<think>\nhm\n</think>\n\nyes"


class Template:
    """A tokenizer whose chat template reads thoughts."""

    chat_template = "{{ message.reasoning_content }}"


async def rendered(tokenizer, ask, **options):
    """Return the messages of a request as the template gets them."""
    tokenizer.seen.clear()
    await ask(**options)
    return tokenizer.seen[0][0]


async def test_thoughts_are_a_field_of_the_message(engine, ask) -> None:
    engine.lines = [SAID, "no"]
    message = (await ask()).choices[0].message
    assert (message.content, message.reasoning_content) == ("yes", "hm")
    assert not hasattr((await ask()).choices[0].message, "reasoning_content")


async def test_thoughts_are_streamed_apart(engine, ask) -> None:
    engine.lines = [SAID, "<think></think>yes"]
    for expected in ("hm", ""):
        thoughts, content = [], ""
        async for chunk in await ask(stream=True):
            delta = chunk.choices[0].delta
            thoughts += [delta.reasoning_content] if hasattr(delta, "reasoning_content") else []
            content += delta.content or ""
        assert ("".join(thoughts), content) == (expected, "yes")


@pytest.mark.parametrize("said", [SAID, "<think>hm</think>yes", " <think>\n hm</think>\nyes"])
async def test_a_template_that_reads_no_thoughts_gets_them_as_they_were_written(
    engine, tokenizer, ask, said
) -> None:
    engine.lines = [said]
    message = (await ask()).choices[0].message
    history = [{"role": "user", "content": "hi"}, message.model_dump(exclude_none=True)]
    _, sent = await rendered(tokenizer, ask, messages=history)
    assert sent == {"role": "assistant", "content": said}


async def test_thoughts_that_the_prompt_opened_are_known_by_its_end(
    engine, tokenizer, ask, monkeypatch
) -> None:
    engine.lines = ["hm\n</think>\n\nyes"]
    template = tokenizer.apply_chat_template

    def opening(conversation, **options):
        return [*template(conversation, **options), *b"assistant\n<think>\n"]

    monkeypatch.setattr(tokenizer, "apply_chat_template", opening)
    message = (await ask()).choices[0].message
    assert (message.content, message.reasoning_content) == ("yes", "hm")
    assert opened_by(tokenizer, [*b"[THINK]"]) == "[/THINK]"
    assert opened_by(tokenizer, [*b"<think>\n\n</think>\n\n"]) is None


async def test_thoughts_of_a_call_stand_before_it(engine, tokenizer, ask) -> None:
    call = '<tool_call>{"name": "add"}</tool_call>'
    engine.lines = [f"<think>\nhm\n</think>\n\n{call}"]
    tools = [{"type": "function", "function": {"name": "add"}}]
    message = (await ask(tools=tools)).choices[0].message
    assert (message.content, message.reasoning_content) == (None, "hm")
    history = [{"role": "user", "content": "hi"}, message.model_dump(exclude_none=True)]
    _, sent = await rendered(tokenizer, ask, messages=history, tools=tools)
    assert sent["content"] == "<think>\nhm\n</think>"


def test_unknown_thoughts_are_written_as_is_usual_and_others_left_alone() -> None:
    messages = [
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "assistant", "content": "", "reasoning_content": "hm"},
        {"role": "assistant", "content": "no", "reasoning_content": ["hm"]},
        {"role": "user", "content": "hi"},
    ]
    assert in_content(messages, object(), Spellings()) == [
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
        {"role": "assistant", "content": "<think>\nhm\n</think>"},
        *messages[2:],
    ]
    assert in_content(messages, Template(), Spellings()) == messages


@pytest.mark.parametrize(
    "message",
    [
        {"content": "yes", "reasoning": "why"},
        {"content": [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "yes"}]},
        {"content": [{"type": "reasoning", "text": "why"}, {"type": "text", "text": "yes"}]},
        {"content": "yes", "reasoning_content": "why", "reasoning": "no"},
    ],
)
async def test_other_forms_of_thoughts_are_known(tokenizer, ask, message) -> None:
    messages = [{"role": "assistant"} | message]
    (sent,) = await rendered(tokenizer, ask, messages=messages)
    assert sent["content"] == "<think>\nwhy\n</think>\n\nyes"


def test_the_oldest_spelling_is_forgotten_first(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_SPELLINGS", 2)
    spellings = Spellings()
    for text in ("a", "b", "a", "c"):
        spellings.keep(Thoughts(text, "<think>", "</think>"), "yes", calls=False)
    written = [spellings.spelled(text, "yes") for text in ("a", "b", "c")]
    assert written == ["<think>a</think>yes", "<think>\nb\n</think>\n\nyes", "<think>c</think>yes"]
