"""Tool calls, from the formats in which models write them back to OpenAI's."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.endpoint.answer import read_answer

TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    }
]
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TAGGED = """<function=add>
<parameter=a>
b
  c
</parameter>
<parameter=d>

</parameter>
</function>"""
ADD = [("add", '{"a": 1}')]
LLAMA = '{"name": "add", "parameters": {"a": 1}}'
MISTRAL = '[{"name": "add", "arguments": {"a": 1}}]'
SCHEMA = {"properties": {"a": {"type": "integer"}, "d": {"type": "string"}}}


def parse(text, functions):
    answer = read_answer(text, functions)
    return answer.content, [*answer.calls]


FORMATS = {
    "hermes": (HERMES, "", ADD),
    "hermes twice after content": (f"Let me see.\n{HERMES}\n{HERMES}", "Let me see.", ADD * 2),
    "hermes without its end": (HERMES.removesuffix("</tool_call>"), "", ADD),
    "llama": ('{"name": "add", "parameters": {"a": 1}}', "", ADD),
    "llama twice": (
        '{"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {"a": 1}}',
        "",
        ADD * 2,
    ),
    "llama with a tag": (
        'Well.<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
        "Well.",
        ADD,
    ),
    "mistral": ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "", ADD),
    "mistral with content": (
        'Sure.[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}][/TOOL_CALLS]',
        "Sure.",
        ADD,
    ),
    "mistral by name": ('[TOOL_CALLS]add[ARGS]{"a": 1}', "", ADD),
    "mistral by name twice": (
        '[TOOL_CALLS]add[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{"a": 1}',
        "",
        ADD * 2,
    ),
    "arguments as text": (
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        ADD,
    ),
    "tags, as Qwen 3.5": (
        f"<tool_call>\n{TAGGED}\n</tool_call>",
        "",
        [("add", '{"a": "b\\n  c", "d": ""}')],
    ),
    "tags after content and without an end": (
        "Well.\n\n<tool_call>\n<function=add>\n</function>",
        "Well.",
        [("add", "{}")],
    ),
    "two in one pair of tags": (f"<tool_call>{LLAMA}\n{LLAMA}</tool_call>", "", ADD * 2),
    "a list between tags": (f"<tool_call>{MISTRAL}</tool_call>", "", ADD),
    "hermes left open before another": (
        f"<tool_call>{LLAMA}<tool_call>{LLAMA}</tool_call>",
        "",
        ADD * 2,
    ),
    "hermes left open before a sentence": (
        f"<tool_call>{LLAMA}\nI add.",
        "\nI add.",
        ADD,
    ),
    "hermes after its tag was named": (
        f"I use <tool_call>, so {HERMES}",
        "I use <tool_call>, so",
        ADD,
    ),
    "hermes beside a broken one": (
        f"<tool_call>{{</tool_call>{HERMES}",
        "<tool_call>{</tool_call>",
        ADD,
    ),
    "openai's form": (
        """<tool_call>{"type": "function", "id": "Abcdefgh1", "function": {"name": "add",
        "arguments": "{\\"a\\": 1}"}}</tool_call>""",
        "",
        ADD,
    ),
    "arguments that are null": (
        '<tool_call>{"name": "add", "arguments": null}</tool_call>',
        "",
        [("add", "{}")],
    ),
    "arguments that are an empty text": (
        '<tool_call>{"name": "add", "arguments": ""}</tool_call>',
        "",
        [("add", "{}")],
    ),
    "a half of a character": (
        '<tool_call>{"name": "add\\ud83d", "arguments": {"a": "\\ud83d\\u0000"}}</tool_call>',
        "",
        [("add\ufffd", '{"a": "\ufffd\\u0000"}')],
    ),
    "tags without tags around": (TAGGED, "", [("add", '{"a": "b\\n  c", "d": ""}')]),
    "tags without the opening one, after a sentence": (
        f"I add.\n\n{TAGGED}\n</tool_call>",
        "I add.",
        [("add", '{"a": "b\\n  c", "d": ""}')],
    ),
    "tags twice": (
        "<function=add></function>\n<function=add></function>",
        "",
        [("add", "{}")] * 2,
    ),
    "names in quotes": (
        '<tool_call><function="add"><parameter="a">1</parameter></function></tool_call>',
        "",
        [("add", '{"a": "1"}')],
    ),
    "a parameter left open before the function's end": (
        "<tool_call><function=add><parameter=a>\n1\n</function></tool_call>",
        "",
        [("add", '{"a": "1"}')],
    ),
    "a parameter and its function left open": (
        "<tool_call><function=add><parameter=a>\n1\n</tool_call>",
        "",
        [("add", '{"a": "1"}')],
    ),
    "a function left open": (
        "<tool_call><function=add><parameter=a>1</parameter>\n</tool_call>",
        "",
        [("add", '{"a": "1"}')],
    ),
    "llama on two lines": (f"{LLAMA}\n{LLAMA}", "", ADD * 2),
    "llama as a list": (f"[{LLAMA}, {LLAMA}]", "", ADD * 2),
    "llama with a tag before a sentence": (
        f"<|python_tag|>{LLAMA}; {LLAMA}\nI add.",
        "I add.",
        ADD * 2,
    ),
    "mistral before a sentence": (f"[TOOL_CALLS]{MISTRAL}\nI add.", "\nI add.", ADD),
    "mistral without a list": (f"[TOOL_CALLS]{LLAMA}", "", ADD),
    "mistral by name without its marks": ('[TOOL_CALLS]add{"a": 1}', "", ADD),
    "mistral by name before a sentence": ('[TOOL_CALLS]add[ARGS]{"a": 1} So.', " So.", ADD),
    "mistral twice": (f"[TOOL_CALLS]{MISTRAL}[TOOL_CALLS]{MISTRAL}", "", ADD * 2),
    "without arguments": ('<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
}


@pytest.mark.parametrize("case", FORMATS)
def test_calls_are_read_from(case) -> None:
    text, content, calls = FORMATS[case]
    found, read = parse(text, {"add": None})
    assert found == content
    assert [(call.name, call.arguments) for call in read] == calls
    assert len({call.id for call in read}) == len(read)


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "",
        '{"answer": 4}',
        '{"name": "multiply", "parameters": {}}',
        '{"name": "add", "parameters": {"a": 1}',
        "<tool_call>add(1)</tool_call>",
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        "<tool_call><function=add></tool_call>",
        "<tool_call><function=add><parameter=a>1</parameter>",
        "<tool_call><function=add><parameter=a>1",
        "<function=multiply></function>",
        "One writes <function=name> for it.",
        '<tool_call>{"name": "add", "arguments": {}} and so on</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": -Infinity}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "4"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "NaN"}</tool_call>',
        '<tool_call>["add"]</tool_call>',
        "<tool_call>[]</tool_call>",
        '{"name": "add", "parameters": {}} {"name": "multiply", "parameters": {}}',
        '{"name": "add", "parameters": {}}\nI add.',
        '{"name": "add", "parameters": {"a": ' + "[" * 200 + "]" * 200 + "}}",
        "[" * 5000,
        '{"a":' * 5000,
        "<tool_call>" * 5000,
        "<tool_call><function=add>1</function></tool_call>",
        "[TOOL_CALLS] what?",
        "[TOOL_CALLS] []",
        "[TOOL_CALLS]add[ARGS]{1",
        '[TOOL_CALLS][{"name": 3}]',
        "<|python_tag|>print(1)",
    ],
)
def test_what_is_no_call_stays_content(text) -> None:
    assert parse(text, {"add": None}) == (text, [])


VALUES = [
    ("12", {"type": "integer"}, 12),
    ("12", {"type": "string"}, "12"),
    ("12", {}, "12"),
    ("12", None, "12"),
    ("True", {"type": "boolean"}, True),
    ("true", {"type": "boolean"}, True),
    ("None", {"type": ["integer", "null"]}, None),
    ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
    ("null", {"type": "string"}, "null"),
    ("nil", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "nil"),
    ('[1, {"b": "c"}]', {"type": "array"}, [1, {"b": "c"}]),
    ('{"b": 1}', {"$ref": "#/$defs/B"}, {"b": 1}),
    ("red", {"$ref": "#/$defs/Colour"}, "red"),
    ("1", {"type": None}, "1"),
    ("1", {"type": [{"a": 1}, "integer"]}, 1),
    ("1", {"anyOf": 3, "oneOf": [3, {"type": "integer"}]}, 1),
]


@pytest.mark.parametrize(("text", "schema", "value"), VALUES)
def test_a_value_between_tags_is_read_as_its_schema_says(text, schema, value) -> None:
    written = f"<tool_call>\n<function=add>\n<parameter=a>\n{text}\n</parameter>\n</function>"
    _, (call,) = parse(written, {"add": {"properties": {"a": schema}}})
    assert json.loads(call.arguments) == {"a": value}


def test_a_schema_in_no_form_at_all_says_nothing_about_values() -> None:
    deep = {"anyOf": [{"type": "integer"}]}
    for _ in range(900):
        deep = {"anyOf": [deep]}
    for schema in ({"properties": 3}, {"properties": {"a": deep}}, 3):
        _, (call,) = parse("<function=add><parameter=a>1</parameter></function>", {"add": schema})
        assert json.loads(call.arguments) == {"a": "1"}


PAGE = "a <parameter=d> here\n<parameter=e>\n<parameter=a>\n</function>\nend"


def test_a_value_that_is_a_page_about_such_calls_stays_whole() -> None:
    """What could end the value does not fit there: unknown or given parameters, a closed value."""
    written = f"<function=add>\n<parameter=a>\n{PAGE}\n</parameter>\n</function>"
    _, (call,) = parse(written, {"add": {"properties": {"a": {"type": "string"}}}})
    assert json.loads(call.arguments) == {"a": PAGE}


def test_a_parameter_left_open_ends_before_the_next_one_of_the_schema() -> None:
    written = (
        "<function=add>\n<parameter=a>\n1\n<parameter=d>\n2\n</parameter>\n</function>\n"
        "<function=add>\n<parameter=d>\n3\n</function>\n<function=add>\n</function>"
    )
    _, calls = parse(written, {"add": SCHEMA})
    read = [json.loads(call.arguments) for call in calls]
    assert read == [{"a": 1, "d": "2"}, {"d": "3"}, {}]


def test_a_call_keeps_the_id_that_the_model_wrote() -> None:
    written = "[TOOL_CALLS]add[CALL_ID]Abcdefgh1[ARGS]{}[TOOL_CALLS]add[CALL_ID]ab[ARGS]{}"
    _, (own, other) = parse(written, {"add": None})
    assert own.id == "Abcdefgh1"
    assert len(other.id) == 9


@given(st.recursive(st.none() | st.floats() | st.text("a\ud800\x00é"), st.lists, max_leaves=5))
def test_arguments_are_json_that_every_reader_takes(value) -> None:
    written = json.dumps({"name": "add", "arguments": {"a": value}})
    _, calls = parse(f"<tool_call>{written}</tool_call>", {"add": None})
    finite = not any(name in written for name in ("NaN", "Infinity"))
    assert len(calls) == finite
    for call in calls:
        assert orjson.loads(call.arguments).keys() == {"a"}


async def test_a_call_becomes_tool_calls_and_a_finish_reason(engine, tokenizer, ask) -> None:
    engine.lines = [f"Wait. {HERMES}"]
    answer = await ask(tools=TOOLS, extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Wait."
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})
    assert choice.token_ids == [*f"Wait. {HERMES}".encode(), 257]
    assert tokenizer.seen[0][1]["tools"] == TOOLS


async def test_a_call_without_content_has_content_none(engine, ask) -> None:
    engine.lines = [HERMES]
    assert (await ask(tools=TOOLS)).choices[0].message.content is None


async def test_a_call_that_was_cut_off_is_reported_as_cut_off(engine, ask) -> None:
    engine.lines = [HERMES]
    choice = (await ask(tools=TOOLS, max_tokens=len(HERMES) - 12)).choices[0]
    assert choice.finish_reason == "length" and choice.message.tool_calls


async def test_markers_that_are_special_tokens_are_read_but_not_shown(engine, ask) -> None:
    engine.lines = [[258, *b'[{"name": "add", "arguments": {}}]', 257], [258, *b"hm", 257]]
    assert (await ask(tools=TOOLS)).choices[0].message.tool_calls[0].function.name == "add"
    assert (await ask()).choices[0].message.content == "hm"


async def test_with_tool_choice_none_the_model_knows_of_no_tools(engine, tokenizer, ask) -> None:
    engine.lines = [HERMES]
    choice = (await ask(tools=TOOLS, tool_choice="none")).choices[0]
    assert choice.message.tool_calls is None and choice.message.content == HERMES
    assert "tools" not in tokenizer.seen[0][1]


@pytest.mark.parametrize(
    ("line", "content", "names"),
    [
        (f"\nWait <b>. {HERMES}", "\nWait <b>.", ["add"]),
        ('{"name": "add", "parameters": {}}', "", ["add"]),
        ("Just < words", "Just < words", []),
        ('{"no": "call"}', '{"no": "call"}', []),
        (f"{HERMES} and so on", " and so on", ["add"]),
    ],
)
async def test_streamed_calls_come_at_the_end_and_never_as_text(
    engine, ask, line, content, names
) -> None:
    engine.lines = [line]
    said, calls, finish = "", [], None
    async for chunk in await ask(stream=True, tools=TOOLS):
        delta = chunk.choices[0].delta
        said += delta.content or ""
        calls += [call.function.name for call in delta.tool_calls or []]
        finish = chunk.choices[0].finish_reason or finish
    assert said == content
    assert calls == names and finish == ("tool_calls" if names else "stop")
