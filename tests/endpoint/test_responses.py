"""OpenAI's Responses at the endpoint: items, answers, events, and stored conversations."""

from __future__ import annotations

import json

import pytest

from art_core.base.errors import EngineError
from art_core.endpoint.protocols.items import conversation
from art_core.endpoint.protocols.responses import KNOWN, parse
from art_core.endpoint.protocols.stored import StoredResponse, StoredResponses

TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}]
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
THOUGHT = "<think>\nhm\n</think>\n\nwell"


def asked(body):
    return parse({"model": "agent", **body}, StoredResponses()).chat


@pytest.fixture
def respond(http):
    async def responded(**body):
        answer = await http.post("/responses", json={"model": "agent", "input": "hi", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return responded


@pytest.fixture
def streamed(http):
    async def events(**body):
        asking = {"model": "agent", "input": "hi", "stream": True, **body}
        text = (await http.post("/responses", json=asking)).text
        found = [block.split("\n") for block in text.strip().split("\n\n")]
        values = [json.loads(lines[1].removeprefix("data: ")) for lines in found]
        names = [lines[0].removeprefix("event: ") for lines in found]
        assert names == [value["type"] for value in values]
        assert [value["sequence_number"] for value in values] == [*range(len(values))]
        return values

    return events


async def test_a_text_is_answered_with_a_message(engine, tokenizer, respond):
    engine.lines = ["hello"]
    engine.cached = [3]
    answer = await respond(instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert (answer["object"], answer["status"], answer["model"]) == (
        "response", "completed", "agent@7",
    )  # fmt: skip
    (item,) = answer["output"]
    (part,) = item["content"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert part == {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
    assert (answer["instructions"], answer["metadata"]) == ("Be brief.", {"a": "b"})
    assert (answer["temperature"], answer["tools"], answer["store"]) == (0.5, [], True)
    usage = answer["usage"]
    prompt = len(engine.asked[0][0])
    assert (usage["input_tokens"], usage["output_tokens"]) == (prompt, 6)
    assert usage["input_tokens_details"] == {"cached_tokens": 3}
    assert (answer["policy_version"], answer["sampling"]) == (7, {"temperature": 0.5})
    system, user = tokenizer.seen[0][0]
    assert (system["content"], user["content"]) == ("Be brief.", "hi")


async def test_tokens_and_log_probs_come_if_they_are_asked_for(engine, respond):
    engine.lines = ["ok"]
    more = {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}
    answer = await respond(return_token_ids=True, top_logprobs=1, **more)
    entries = answer["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["o", "k", "<|end|>"]
    assert all(len(entry["top_logprobs"]) == 1 for entry in entries)
    assert answer["token_ids"] == [*b"ok", 257]
    assert answer["prompt_token_ids"] == engine.asked[0][0]


async def test_thoughts_and_calls_are_items(engine, respond):
    engine.lines = [f"{THOUGHT}{CALL}{CALL}", CALL, "<think>never ends"]
    answer = await respond(tools=TOOLS)
    kinds = [item["type"] for item in answer["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert answer["output"][0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    first, second = answer["output"][2:]
    assert (first["name"], first["arguments"]) == ("add", '{"a": 1}')
    assert first["call_id"] != second["call_id"]
    assert [item["type"] for item in (await respond(tools=TOOLS))["output"]] == ["function_call"]
    cut = await respond(max_output_tokens=12)
    assert (cut["status"], cut["incomplete_details"]["reason"]) == (
        "incomplete", "max_output_tokens",
    )  # fmt: skip
    assert [item["status"] for item in cut["output"]] == ["incomplete"]


async def test_the_items_of_an_answer_are_one_message():
    reasoning = {"type": "reasoning", "summary": [], "content": [
        {"type": "reasoning_text", "text": "hm"}]}  # fmt: skip
    call = {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a"}
    found = conversation(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "add"}]},
            reasoning,
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "I "}, {"type": "refusal", "refusal": "do"}]},
            call, {**call, "call_id": "b"},
            {**output, "output": "1"},
            {**output, "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
            {"type": "reasoning", "encrypted_content": None},
            {"role": "assistant", "content": "3"},
            {"role": "assistant", "content": "4"},
        ],
        StoredResponses(),
    )  # fmt: skip
    assert [message["role"] for message in found] == [
        "developer", "user", "assistant", "tool", "tool", "assistant", "assistant",
    ]  # fmt: skip
    answer, later, last = found[2], *found[-2:]
    assert (answer["content"], answer["reasoning_content"]) == ("I do", "hm")
    assert [each["id"] for each in answer["tool_calls"]] == ["a", "b"]
    assert (later["content"], later["reasoning_content"], last["content"]) == ("3", "so", "4")
    assert [message["content"] for message in found[3:5]] == ["1", "2"]


async def test_a_response_goes_on_from_the_previous_one(engine, tokenizer, respond, http):
    engine.lines = ["one", "two", "three"]
    first = await respond(instructions="Count.")
    second = await respond(previous_response_id=first["id"], input="on")
    third = await respond(previous_response_id=second["id"], input="on", store=False)
    prompts = [[m["content"] for m in seen[0]] for seen in tokenizer.seen]
    assert ["Count.", "hi"] in prompts
    assert ["hi", "one", "on", "two", "on"] in prompts  # instructions hold for one response
    assert third["previous_response_id"] == second["id"]
    assert (await http.get(f"/responses/{second['id']}")).json() == second
    deleted = (await http.delete(f"/responses/{second['id']}")).json()
    assert deleted == {"id": second["id"], "object": "response", "deleted": True}
    for path in (second["id"], third["id"]):
        gone = await http.get(f"/responses/{path}")
        assert gone.status_code == 404
        assert gone.json()["error"]["message"] == f"Response with id {path!r} not found."
    answer = await http.post(
        "/responses", json={"model": "agent", "input": "a", "previous_response_id": third["id"]}
    )
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert error["message"] == f"Previous response with id {third['id']!r} not found."
    assert (error["param"], error["code"]) == (
        "previous_response_id", "previous_response_not_found",
    )  # fmt: skip


async def test_an_item_may_refer_to_one_of_a_stored_response(engine, tokenizer, respond, http):
    engine.lines = [THOUGHT, "two"]
    first = await respond()
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    hi, on = ({"role": "user", "content": text} for text in ("hi", "on"))
    await respond(input=[hi, *references, on])
    (_, answered, _), _ = tokenizer.seen[-1]
    assert (answered["content"], answered["reasoning_content"]) == ("well", "hm")
    for unknown in ({"id": "msg_1"}, {"id": 3}, {}):
        asking = {"model": "agent", "input": [hi, {"type": "item_reference", **unknown}]}
        answer = await http.post("/responses", json=asking)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (404, "input[1].id"), error
        assert "send the item itself" in error["message"]


def test_stored_responses_have_a_limit():
    few = StoredResponses(max_count=2)
    for name in "abc":
        few.add(StoredResponse({"id": name}, ()))
    assert few.get("c").body == {"id": "c"}
    with pytest.raises(Exception, match="'a' not found"):
        few.get("a")
    few.delete("c")
    few.delete("c")
    small = StoredResponses(max_bytes=100)
    small.add(StoredResponse({"id": "a"}, ({"role": "user", "content": "x" * 40},)))
    small.add(StoredResponse({"id": "b"}, ({"role": "user", "content": "x" * 40},)))
    small.get("b")
    with pytest.raises(Exception, match="not found"):
        small.get("a", previous=True)


async def test_a_stream_has_the_events_in_order(engine, streamed, http):
    engine.lines = [f"{THOUGHT}{CALL}"]
    events = await streamed(tools=TOOLS, top_logprobs=1)
    kinds = [each["type"].removeprefix("response.") for each in events]
    once = [k for n, k in enumerate(kinds) if n == 0 or kinds[n - 1] != k]
    assert once == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == []
    added = [each for each in events if each["type"] == "response.output_item.added"]
    assert [each["output_index"] for each in added] == [0, 1, 2]
    assert [each["item"].get("content") for each in added] == [[], [], None]
    texts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(texts) == "well"
    final = events[-1]["response"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert (final["output"], final["status"]) == (done, "completed")
    assert final["usage"]["output_tokens"] > 0
    assert all("top_logprobs" in entry for entry in done[1]["content"][0]["logprobs"])
    assert (await http.get(f"/responses/{final['id']}")).json() == final


async def test_a_stream_that_is_cut_at_its_limit_is_incomplete(engine, streamed):
    engine.lines = ["hello"]
    events = await streamed(max_output_tokens=3)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "hello"[:3]


async def test_a_stream_that_fails_ends_with_an_error(engine, streamed, client):
    engine.lines, engine.failure, engine.fails_after = ["hello"], EngineError("it died"), 2
    events = await streamed()
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "engine_error")
    assert events[-1]["message"] == events[-1]["error"]["message"] == "it died"


@pytest.mark.parametrize(
    ("changed", "param", "reason"),
    [
        ({"input": None}, "input", "must be a text or a list of items, got None"),
        ({"input": []}, "input", "at least one message"),
        ({"input": [3]}, "input[0]", "must be an object"),
        ({"input": [{"role": "cat", "content": "a"}]}, "input[0].role", "one of assistant, dev"),
        ({"input": [{"role": "user"}]}, "input[0].content", "a text or a list of parts"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content[0]", "of the form"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].image_url", "a data URL, got None"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 3}]}]},
         "input[0].content[0].text", "must be a text"),
        ({"input": [{"type": "file_search_call"}]}, "input[0].type", "function_call_out"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input[0].name", "a text"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].call_id", "the id of a call"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]},
         "input[0].encrypted_content", "cannot be read"),
        ({"instructions": ["a"]}, "instructions", "must be a text"),
        ({"store": "no"}, "store", "true or false"),
        ({"previous_response_id": 3}, "previous_response_id", "a response's id"),
        ({"background": True}, "background", "is not supported"),
        ({"conversation": "c"}, "conversation", "use previous_response_id"),
        ({"truncation": "auto"}, "truncation", "shortens"),
        ({"include": ["file_search_call.results"]}, "include", "file_search_call"),
        ({"include": "all"}, "include", "all"),
        ({"tools": "all"}, "tools", "must be a list"),
        ({"tools": [3]}, "tools[0]", "of the form"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "no hosted tools here"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name", "a text"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
        ({"text": "json"}, "text", "an object"),
        ({"text": {"format": "json"}}, "text.format", "an object"),
        ({"text": {"verbosity": "high"}}, "text", "text is not supported"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "reasoning is not supported"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"inputt": "hi"}, "inputt", "did you mean 'input'"),
        ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools", "variables"),
    ],
)  # fmt: skip
async def test_what_is_not_supported_is_refused_by_its_name(http, engine, changed, param, reason):
    answer = await http.post("/responses", json={"model": "agent", "input": "hi", **changed})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert reason.lower() in error["message"].lower()
    assert not engine.asked


def test_a_forced_form_is_that_of_the_chat_completion():
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    chat = asked(
        {
            "input": "hi", "text": {"format": schema, "verbosity": "low"}, "tools": TOOLS,
            "tool_choice": {"type": "function", "name": "add"}, "reasoning": {"effort": "low"},
            "parallel_tool_calls": False, "seed": 3, "stop": ["x"],
        }
    )  # fmt: skip
    form = {"name": "a", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": form}
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert chat["tools"][0]["function"]["name"] == "add"
    assert (chat["reasoning_effort"], chat["verbosity"]) == ("low", "low")
    assert (chat["parallel_tool_calls"], chat["seed"], chat["stop"]) == (False, 3, ["x"])
    plain = asked({"input": "hi", "text": {"format": {"type": "json_object"}}})
    assert plain["response_format"] == {"type": "json_object"}
    assert asked({"input": "hi", "tool_choice": "required"})["tool_choice"] == "required"


def test_parameters_are_known_once():
    assert not KNOWN.parameters & KNOWN.without_effect
    assert not KNOWN.parameters & KNOWN.neutral.keys()


async def test_openais_client_reads_a_response_and_its_stream(engine, client):
    engine.lines = ["hello"]
    answer = await client.responses.create(model="agent", input="hi")
    assert answer.output_text == "hello"
    async with client.responses.stream(model="agent", input="hi") as stream:
        assert (await stream.get_final_response()).output_text == "hello"
    engine.failure = EngineError("it died")
    with pytest.raises(Exception, match="it died"):
        await client.responses.create(model="agent", input="hi")
    engine.fails_after = 2
    with pytest.raises(Exception, match="it died"):
        _ = [e async for e in await client.responses.create(model="agent", input="a", stream=True)]
