"""OpenAI's older Completions at the endpoint: a prompt without a chat template."""

from __future__ import annotations

import json

import pytest

from art_core.base.errors import EngineError

ASKED = {"model": "agent", "prompt": "One, two"}
THOUGHT = '<think>hm</think><tool_call>{"name": "f"}</tool_call>'


@pytest.fixture
def complete(http):
    async def completed(**body):
        answer = await http.post("/completions", json={**ASKED, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    return completed


@pytest.mark.parametrize("prompt", ["One", ["One"], [79, 110, 101], [[79, 110, 101]]])
async def test_a_prompt_goes_to_the_engine_as_it_is(engine, tokenizer, complete, prompt):
    engine.lines = [", two"]
    answer = await complete(prompt=prompt)
    assert engine.asked[0][0] == [*b"One"]
    assert tokenizer.seen == []
    assert (answer["object"], answer["model"]) == ("text_completion", "agent@7")
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (", two", "stop", None)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert not {"raw_prompt", "prompt_token_ids"} & answer.keys()


async def test_thoughts_and_calls_are_text(engine, complete):
    engine.lines = [THOUGHT]
    assert (await complete(max_tokens=100))["choices"][0]["text"] == THOUGHT
    assert engine.asked[0][1].max_tokens == 100
    assert len((await complete())["choices"][0]["text"]) == 16


async def test_log_probs_and_ids_are_those_of_the_tokens(engine, complete):
    engine.lines = ["ok"]
    answer = await complete(logprobs=1, n=2, return_token_ids=True, stop=["zz"])
    assert answer["prompt_token_ids"] == [*b"One, two"]
    for index, choice in enumerate(answer["choices"]):
        assert (choice["index"], choice["token_ids"]) == (index, [*b"ok", 257])
        assert choice["logprobs"]["tokens"] == ["o", "k", "<|end|>"]
        assert choice["logprobs"]["text_offset"] == [0, 1, 2]
        assert choice["logprobs"]["top_logprobs"][0] == {"o": -0.5}
    plain = (await complete(logprobs=0))["choices"][0]["logprobs"]
    assert (plain["token_logprobs"], plain["top_logprobs"]) == ([-0.5] * 3, None)


async def test_a_stream_has_chunks_of_text(engine, http):
    engine.lines = ["hello"]
    body = {**ASKED, "stream": True, "logprobs": 0, "stream_options": {"include_usage": True}}
    lines = (await http.post("/completions", json=body)).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    texts = [c["choices"][0]["text"] for c in chunks if c["choices"]]
    assert "".join(texts) == "hello"
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert all(c["object"] == "text_completion" and "prompt_tokens" not in c for c in chunks)
    engine.failure, engine.fails_after = EngineError("it died"), 2
    lines = (await http.post("/completions", json=body)).text.strip().split("\n\n")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "it died"


async def test_openais_client_reads_it(engine, client):
    engine.lines = ["hello"]
    answer = await client.completions.create(model="agent", prompt="a")
    assert answer.choices[0].text == "hello"
    stream = await client.completions.create(model="agent", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "hello"


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1 << 20]}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"prompt": "x" * 50000}, None),
        ({"suffix": "b"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"temperature": 9}, "temperature"),
    ],
)
async def test_what_is_not_supported_is_refused_by_its_name(http, engine, changed, param):
    answer = await http.post("/completions", json={**ASKED, **changed})
    assert answer.status_code == (413 if param is None else 400)
    assert answer.json()["error"]["param"] == param
    assert not engine.asked


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"raw_prompt": 3}, "raw_prompt"),
        ({"raw_prompt": []}, "raw_prompt"),
        ({"raw_prompt": "a", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"raw_prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
async def test_a_raw_prompt_of_a_chat_has_no_template(refused, changed, param):
    status, error = await refused(**changed)
    assert (status, error["param"]) == (400, param)
