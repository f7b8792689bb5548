"""Toolboxes: schemas of functions, and answers to calls that are right, broken and odd."""

from typing import Literal

import pytest

import art_core as art


def add(a: int, b: float = 0.5) -> float:
    """Add two numbers."""
    return a + b


async def find(query: str, kind: Literal["mail", "note"] = "mail", tags: list[str] = ()) -> dict:
    """Search."""
    return {"query": query, "kind": kind, "tags": list(tags)}


def plain(text, loud: bool = False):
    return text.upper() if loud else text


BOX = art.Toolbox([add, find, plain])


def call(name, arguments):
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


async def answer(name, arguments):
    (message,) = await BOX.answers({"role": "assistant", "tool_calls": [call(name, arguments)]})
    assert (message["role"], message["tool_call_id"]) == ("tool", "c")
    return message["content"]


def test_functions_are_described():
    first, second, third = (schema["function"] for schema in BOX.schemas)
    assert first == {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "number"}},
            "required": ["a"],
        },
    }
    assert second["parameters"]["properties"] == {
        "query": {"type": "string"},
        "kind": {"enum": ["mail", "note"]},
        "tags": {"type": "array"},
    }
    assert (third["description"], third["parameters"]["required"]) == ("", ["text"])
    assert third["parameters"]["properties"]["text"] == {"type": "string"}


@pytest.mark.parametrize(
    ("name", "arguments", "content"),
    [
        ("add", '{"a": 1}', "1.5"),
        ("add", '{"a": 1, "b": 2}', "3"),
        ("find", '{"query": "q", "kind": "note"}', '{"query": "q", "kind": "note", "tags": []}'),
        ("find", {"query": "q", "tags": ["t"]}, '{"query": "q", "kind": "mail", "tags": ["t"]}'),
        ("plain", '{"text": "x", "loud": true}', "X"),
    ],
)
async def test_calls_are_made(name, arguments, content):
    assert await answer(name, arguments) == content


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("ad", "{}", "there is no tool 'ad'; there are add, find, plain"),
        ("add", '{"a": ', "the arguments of add are no JSON"),
        ("add", "[1]", "the arguments of add must be a JSON object"),
        ("add", "null", "the arguments of add must be a JSON object"),
        ("add", "", "add: missing a required argument: 'a'"),
        ("add", '{"a": 1, "c": 2}', "add: got an unexpected keyword argument 'c'"),
        ("add", '{"a": "1"}', "add: a must be {'type': 'integer'}, got '1'"),
        ("add", '{"a": true}', "add: a must be {'type': 'integer'}, got True"),
        ("find", '{"query": "q", "kind": "file"}', "find: kind must be {'enum': ['mail', 'note']}"),
        ("plain", '{"text": "x", "loud": 1}', "plain: loud must be {'type': 'boolean'}, got 1"),
        ("add", 3, "the arguments of add are no JSON: 3"),
    ],
)
async def test_broken_calls_are_answered_with_an_error(name, arguments, problem):
    assert (await answer(name, arguments)).startswith(f"error: {problem}")


async def test_each_call_of_a_message_is_answered_and_none_without_calls():
    calls = [{**call("add", '{"a": 1}'), "id": n} for n in "ab"]
    assert [m["tool_call_id"] for m in await BOX.answers({"tool_calls": calls})] == ["a", "b"]
    assert await BOX.answers({"role": "assistant", "content": "x", "tool_calls": None}) == []
    (odd,) = await BOX.answers({"tool_calls": [{"id": "x"}]})
    assert odd["content"].startswith("error: there is no tool 'None'")


async def test_an_exception_of_a_function_is_no_answer():
    def fails():
        raise OSError("the server is down")

    with pytest.raises(OSError, match="is down"):
        await art.Toolbox([fails]).answers({"tool_calls": [call("fails", "{}")]})


def test_a_parameter_of_another_type_is_an_error():
    def odd(when: complex):
        pass

    with pytest.raises(art.ConfigError, match="the tool 'odd' has a parameter 'when' of the type"):
        art.Toolbox([odd])


async def test_a_tool_may_have_a_schema_of_its_own_and_answer_for_elsewhere():
    async def ask(arguments):
        return f"asked {arguments['q']}"

    form = {"type": "object", "properties": {"q": {"type": "string"}}}
    box = art.Toolbox([add, art.Tool(name="ask", description="Ask.", parameters=form, call=ask)])
    assert box.schemas[1]["function"] == {
        "name": "ask",
        "description": "Ask.",
        "parameters": form,
    }
    (message,) = await box.answers({"tool_calls": [call("ask", '{"q": "why"}')]})
    assert message["content"] == "asked why"
