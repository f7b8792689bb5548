"""Requests that constrain their answers: what they become, and what reaches the engine."""

from __future__ import annotations

import attrs
import httpx2
import pytest

from art_core.base.errors import ConfigError
from art_core.data.trajectory import tokens_of
from art_core.endpoint.constraint import MAX_FORM, Constraint, Form
from art_core.endpoint.errors import RequestError
from art_core.endpoint.request import chat_request

ADD, SUB = ({"type": "function", "function": {"name": name}} for name in ("add", "sub"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_TEXT = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}


def constraint(**options):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **options}
    return chat_request(body).constraint


@attrs.define
class Grammars:
    """Writes a constraint as the grammar; keeps the prompts."""

    prompts: list = attrs.field(factory=list)
    problem: str = ""

    def grammar(self, constraint, prompt_ids):
        self.prompts.append(prompt_ids)
        if self.problem:
            raise ConfigError(self.problem)
        return f"start: {constraint.form.text}" if constraint.form else "start: call"


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"response_format": FORMAT}, Form("json", AS_TEXT, "response_format")),
        (
            {"response_format": {"type": "json_object"}},
            Form("json", '{"type": "object"}', "response_format"),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Form("json", AS_TEXT, "structured_outputs")),
        ({"structured_outputs": {"json": AS_TEXT}}, Form("json", AS_TEXT, "structured_outputs")),
        (
            {"structured_outputs": {"json_object": True}},
            Form("json", '{"type": "object"}', "structured_outputs"),
        ),
        (
            {"structured_outputs": {"choice": ["yes", "n\no"]}},
            Form("grammar", 'start: "yes" | "n\\no"', "structured_outputs"),
        ),
        (
            {"structured_outputs": {"regex": "a+"}, "response_format": {"type": "text"}},
            Form("regex", "a+", "structured_outputs"),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Form("grammar", 'start: "a"', "structured_outputs"),
        ),
    ],
)
def test_a_form_of_the_text_comes_from_either_parameter(given, form):
    assert constraint(**given) == Constraint(form=form)


def test_an_answer_is_free_unless_something_is_asked_of_it():
    assert constraint() is None
    assert constraint(response_format={"type": "text"}) is None
    assert constraint(tools=[ADD], tool_choice="auto", parallel_tool_calls=True) is None
    assert constraint(parallel_tool_calls=False) is None
    assert constraint(tools=[ADD], tool_choice="none", parallel_tool_calls=False) is None


def test_calls_are_forced_by_tool_choice():
    named = {"type": "function", "function": {"name": "sub"}}
    assert constraint(tools=[ADD, SUB], tool_choice="required") == Constraint(
        functions=(ADD, SUB), required=True
    )
    assert constraint(tools=[ADD, SUB], tool_choice=named, parallel_tool_calls=False) == Constraint(
        functions=(SUB,), required=True, parallel=False
    )
    allowed = {"mode": "required", "tools": [named]}
    found = constraint(
        tools=[ADD, SUB], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
    )
    assert found == Constraint(functions=(SUB,), required=True)


def test_calls_may_be_limited_without_being_forced():
    single = constraint(tools=[ADD], parallel_tool_calls=False)
    assert single == Constraint(functions=(ADD,), parallel=False)
    assert single.param == "parallel_tool_calls"
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]}
    some = constraint(
        tools=[ADD, SUB], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}
    )
    assert some == Constraint(functions=(ADD,))
    both = constraint(tools=[ADD], response_format=FORMAT)
    assert (both.functions, both.param) == ((ADD,), "response_format")


def test_a_form_that_is_too_large_is_refused():
    with pytest.raises(RequestError, match=f"at most {MAX_FORM} are compiled"):
        constraint(structured_outputs={"regex": "a" * (MAX_FORM + 1)})


@pytest.mark.parametrize("stream", [False, True])
async def test_the_grammar_reaches_the_engine_and_is_stored_with_the_tokens(
    engine, models, ask, stream
):
    models.grammars = Grammars()
    asked = {"response_format": FORMAT, "logprobs": True}
    if stream:
        kept = [
            chunk
            async for chunk in await ask(
                **asked, stream=True, extra_body={"return_token_ids": True}
            )
        ]
        assert kept[0].grammar == f"start: {AS_TEXT}"
    else:
        answer = await ask(**asked, extra_body={"return_token_ids": True})
        assert answer.grammar == f"start: {AS_TEXT}"
        plain = await ask(**asked)
        assert not hasattr(plain, "grammar")
    ids, sampling, _ = engine.asked[0]
    assert sampling.grammar == f"start: {AS_TEXT}"
    assert models.grammars.prompts[0] == tuple(ids)


async def test_a_raw_prompt_has_no_thoughts_before_the_form(engine, models, http):
    models.grammars = Grammars()
    body = {"model": "agent", "prompt": "once", "structured_outputs": {"regex": "a+"}}
    answer = await http.post("/completions", json=body)
    assert answer.status_code == 200
    assert models.grammars.prompts == [()]
    assert engine.asked[0][1].grammar == "start: a+"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {"response_format": FORMAT}, "response_format"),
        ("/chat/completions", {"tools": [ADD], "tool_choice": "required"}, "tool_choice"),
        (
            "/responses",
            {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
            "text",
        ),
        (
            "/messages",
            {"max_tokens": 9, "output_format": {"type": "json_schema", "schema": SCHEMA}},
            "output_format",
        ),
    ],
)
async def test_a_constraint_that_does_not_compile_is_an_error_of_the_protocol(
    models, http, path, body, param
):
    models.grammars = Grammars(problem='Unimplemented keys: ["not"]')
    hi = [{"role": "user", "content": "hi"}]
    asked = {"input": "hi"} if path == "/responses" else {"messages": hi}
    answer: httpx2.Response = await http.post(path, json={"model": "agent", **asked, **body})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["message"] == f'{param}: Unimplemented keys: ["not"]'


async def test_biases_and_min_p_reach_the_engine_and_mark_the_answer(engine, models, ask):
    models.biases = True
    answer = await ask(
        logit_bias={"7": -100, "3": 2.5, "9": 0},
        extra_body={"min_p": 0.1, "return_token_ids": True},
        logprobs=True,
    )
    sampling = engine.asked[0][1]
    assert (sampling.min_p, sampling.logit_bias) == (0.1, ((3, 2.5), (7, -100.0)))
    assert answer.sampling == {"min_p": 0.1, "logit_bias": {"3": 2.5, "7": -100.0}}
    choice = {
        **answer.choices[0].model_dump(),
        "prompt_token_ids": answer.prompt_token_ids,
        "sampling": answer.sampling,
    }
    assert tokens_of(choice).biased


async def test_a_bias_is_of_a_token_of_the_vocabulary(models, http):
    models.biases = True
    body = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
    answer = await http.post("/chat/completions", json={**body, "logit_bias": {"259": 1}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias")
