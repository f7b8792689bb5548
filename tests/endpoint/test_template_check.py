from __future__ import annotations

import logging
import re
from typing import Any

import attrs
import jinja2
import pytest

from art_core.endpoint.prompt import MAX_FORMS, TemplateCheck
from art_core.endpoint.request import chat_request

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
ASK = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "3"}
ALL = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}[{{ m.role }}] {{ m.content }}{{ m.tool_calls | default("") }}{% endfor %}
{%- if enable_thinking %}<think>{% endif %}"""
ONLY_USERS = """
{%- for m in messages %}{% if m.role == "user" %}{{ m.content }}{% endif %}{% endfor %}"""
NO_CALLS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
STRICT = """
{%- for m in messages %}{% if m.role == "system" %}{{ raise(m) }}{% endif %}{{ m.content }}
{%- endfor %}"""


@attrs.define(eq=False)
class Templated:
    """A tokenizer that only renders."""

    chat_template: Any
    rendered: int = 0

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        self.rendered += 1
        template = jinja2.Template(self.chat_template)
        return template.render(messages=conversation, **options)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """Look at requests with a template: `warnings(template, body, ...)` gives what is logged."""
    caplog.set_level(logging.WARNING, logger="art_core")

    def looked(template: str, *bodies: dict[str, Any]) -> list[str]:
        caplog.clear()
        check, tokenizer = TemplateCheck(), Templated(template)
        for body in bodies:
            check.check(chat_request({"model": "m", **body}), tokenizer, "agent@3")  # type: ignore[arg-type]
        return [record.getMessage() for record in caplog.records]

    return looked


def test_a_template_that_renders_everything_gets_no_warning(warnings: Any) -> None:
    body = {
        "messages": [SYSTEM, ASK, CALLING, {**RESULT, "name": "add"}],
        "tools": TOOLS,
        "chat_template_kwargs": {"enable_thinking": True, "add_generation_prompt": False},
    }
    assert warnings(ALL, body) == []


@pytest.mark.parametrize(
    ("template", "body", "said"),
    [
        (NO_CALLS, {"messages": [ASK], "tools": TOOLS}, "no place for `tools`.*Describe the tools"),
        (ONLY_USERS, {"messages": [SYSTEM, ASK]}, "role 'system'.*first user message"),
        (ONLY_USERS, {"messages": [ASK, RESULT]}, "role 'tool'.*as user messages"),
        (
            ONLY_USERS,
            {"messages": [ASK, {"role": "assistant", "content": "x"}]},
            "role 'assistant'",
        ),
        (NO_CALLS, {"messages": [{**ASK, "name": "Ann"}]}, "`name` of messages.*into the content"),
        (NO_CALLS, {"messages": [ASK, CALLING]}, "`tool_calls` of messages.*Write the calls"),
        (
            NO_CALLS,
            {"messages": [ASK], "chat_template_kwargs": {"enable_thinking": False}},
            "`chat_template_kwargs.enable_thinking`",
        ),
    ],
)
def test_what_a_template_leaves_out_is_said_with_the_remedy(
    warnings: Any, template: str, body: dict[str, Any], said: str
) -> None:
    (warning,) = warnings(template, body)
    assert warning.startswith("the chat template of 'agent' has no place for")
    assert re.search(said, warning)


def test_it_is_said_once_for_a_model(warnings: Any) -> None:
    first = {"messages": [ASK], "tools": TOOLS}
    other = {"messages": [SYSTEM, ASK], "tools": TOOLS}
    assert len(warnings(NO_CALLS, first, first, other)) == 1


def test_a_template_that_refuses_leaves_nothing_out(warnings: Any) -> None:
    assert warnings(STRICT, {"messages": [SYSTEM, ASK], "tools": TOOLS}) == []


def test_a_form_of_request_is_looked_at_once_and_forms_are_bounded() -> None:
    check, tokenizer = TemplateCheck(), Templated(ALL)

    def look(**kwargs: Any) -> int:
        before = tokenizer.rendered
        body = {"model": "m", "messages": [ASK], "chat_template_kwargs": kwargs}
        check.check(chat_request(body), tokenizer, "agent")  # type: ignore[arg-type]
        return tokenizer.rendered - before

    assert (look(), look()) == (2, 0)
    for number in range(MAX_FORMS):
        look(**{f"x{number}": 1})
    assert look() == 2
