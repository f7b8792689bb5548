"""Images in the messages of each protocol: read, refused, and named in the answer."""

import json

import pytest

from art_core.base.images import data_url, image_digest
from art_core.endpoint.messages import MAX_IMAGES

PNG = data_url("image/png", b"\x89PNG one")
OTHER = data_url("image/webp", b"RIFF two")


def shows(url=PNG, **more):
    part = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
    return {"role": "user", "content": [{"type": "text", "text": "a"}, part], **more}


@pytest.fixture
def seeing(models):
    models.images_refused = None


async def test_an_image_reaches_the_engine_and_the_answer_names_it(seeing, ask, engine, tokenizer):
    answer = await ask(messages=[shows()], extra_body={"return_token_ids": True})
    assert [*engine.images] == [(PNG,)]
    assert tokenizer.decode(engine.asked[0][0]) == "<|start|>user\na<image><|end|>"
    assert answer.prompt_images == [image_digest(PNG)]
    plain = await ask(extra_body={"return_token_ids": True})
    assert not hasattr(plain, "prompt_images")
    assert engine.images[1] == ()
    stream = await ask(messages=[shows()], stream=True, extra_body={"return_token_ids": True})
    first, *_ = [chunk async for chunk in stream]
    assert first.prompt_images == [image_digest(PNG)]


async def test_results_of_tools_and_system_messages_may_have_images(seeing, ask, tokenizer):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    system = shows(role="system")
    await ask(messages=[system, calling, shows(role="tool", tool_call_id="c")])
    assert [m["role"] for m in tokenizer.seen[0][0]] == ["system", "assistant", "tool"]
    assert tokenizer.seen[0][0][2]["content"][1] == {"type": "image", "image": PNG}


@pytest.mark.parametrize(
    ("message", "param", "reason"),
    [
        (shows("https://example.org/a.png"), "messages[0].content[1].image_url.url",
         "not fetched from other servers"),
        (shows("data:image/gif;base64,R0lG"), "messages[0].content[1].image_url",
         "one of image/png, image/jpeg, image/webp"),
        (shows("data:image/png;base64,???"), "messages[0].content[1].image_url", "base64 data"),
        (shows(None), "messages[0].content[1].image_url", "of the form"),
        (shows(role="assistant"), "messages[0].content", "an answer of the assistant"),
        (shows(OTHER), "messages", "an image cannot be decoded: it is no PNG"),
    ],
)  # fmt: skip
async def test_an_image_that_cannot_be_read_is_refused(seeing, refused, message, param, reason):
    status, error = await refused(messages=[message])
    assert (status, error["param"]) == (400, param)
    assert reason in error["message"]


async def test_too_many_images_are_refused(seeing, refused):
    tiny = data_url("image/png", b"\x89PNG")
    part = {"type": "image_url", "image_url": tiny}
    status, error = await refused(messages=[{"role": "user", "content": [part] * (MAX_IMAGES + 1)}])
    assert status == 400
    assert "at most 100 images, got 101" in error["message"]


async def test_a_model_of_text_refuses_images_in_each_protocols_form(http, refused):
    reason = "'agent@7' takes no images: its model reads text only. Use a base model that reads"
    status, error = await refused(messages=[shows()])
    assert (status, error["code"]) == (400, "unsupported_parameter")
    assert reason in error["message"]
    item = {"role": "user", "content": [{"type": "input_image", "image_url": PNG}]}
    answer = await http.post("/responses", json={"model": "agent", "input": [item]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    assert reason in answer.json()["error"]["message"]
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png",
             "data": PNG.partition(",")[2]}}  # fmt: skip
    body = {"model": "agent", "max_tokens": 5, "messages": [{"role": "user", "content": [block]}]}
    for path in ("/messages", "/messages/count_tokens"):
        answer = await http.post(path, json=body)
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert reason in answer.json()["error"]["message"]


async def test_responses_have_images_in_messages_and_outputs_of_tools(seeing, http, engine):
    image = {"type": "input_image", "image_url": PNG, "detail": "auto"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, image]},
        call,
        {"type": "function_call_output", "call_id": "c", "output": [image]},
    ]
    body = {"model": "agent", "input": items, "return_token_ids": True}
    answer = (await http.post("/responses", json=body)).json()
    assert answer["prompt_images"] == [image_digest(PNG)] * 2
    assert engine.images == [(PNG, PNG)]
    by_file = {"type": "input_image", "file_id": "f"}
    body["input"] = [{"role": "user", "content": [by_file]}]
    error = (await http.post("/responses", json=body)).json()["error"]
    assert error["param"] == "input[0].content[0].image_url"


async def test_messages_have_images_in_contents_and_results_of_tools(seeing, http, engine):
    source = {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]}
    block = {"type": "image", "source": source}
    used = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, block]},
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [result, {"type": "text", "text": "b"}, block]},
    ]
    body = {"model": "agent", "max_tokens": 5, "messages": messages}
    answer = await http.post("/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert engine.images == [(PNG, PNG, PNG)]
    counted = await http.post("/messages/count_tokens", json=body)
    assert counted.json()["input_tokens"] == len(engine.asked[0][0])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"type": "url", "url": "https://example.org/a.png"}, "not fetched from other servers"),
        ({"type": "file", "file_id": "f"}, "source must be of the form"),
        (3, "source must be of the form"),
        ({"type": "base64", "media_type": "image/gif", "data": "R0lG"}, "one of image/png"),
    ],
)
async def test_a_source_that_is_no_image_is_refused(seeing, http, source, reason):
    content = [{"type": "image", "source": source}]
    messages = [{"role": "user", "content": content}]
    answer = await http.post("/messages", json={"model": "agent", "max_tokens": 5,
                                                "messages": messages})  # fmt: skip
    error = answer.json()
    assert (answer.status_code, error["type"]) == (400, "error")
    assert reason in error["error"]["message"], json.dumps(error)
