"""Beside the second stop: parts of a request that the model's chat template leaves out.

A template without a place for tools renders the same prompt with and without them. So the first
request of each form is rendered again with each part changed; a part whose change is not in the
prompt is reported, once for each model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from art_core.endpoint.engine import ChatTokenizer
from art_core.endpoint.request import ChatRequest

log = logging.getLogger("art_core")

MAX_FORMS = 256
_MARK = "#"
_REMEDIES = {
    "tools": "Describe the tools in a message, or use a model whose template has tools",
    "tool_calls": "Write the calls into the assistant's content",
    "system": "Put their text into the first user message",
    "name": "Write the name into the content",
    "tool": "Send the results of tools as user messages",
}
_ANY_REMEDY = "Use a model whose chat template renders them"
# Arguments of `apply_chat_template` itself; a template need not name them.
_OF_THE_CALL = frozenset({"add_generation_prompt", "continue_final_message"})

Form = tuple[Any, ...]


class TemplateCheck:
    """Warns about what a chat template leaves out. Safe under threads: at worst it warns twice."""

    def __init__(self) -> None:
        self._forms: set[Form] = set()
        self._warned: set[tuple[int, str]] = set()

    def look(self, request: ChatRequest, tokenizer: ChatTokenizer, model: str) -> None:
        """Warn if the prompt of a request lacks a part of it; look once at each form of request."""
        form = (id(tokenizer), *_form(request))
        if form in self._forms:
            return
        if len(self._forms) >= MAX_FORMS:
            self._forms.clear()
        self._forms.add(form)
        for part, shown in _left_out(request, tokenizer):
            if (id(tokenizer), part) not in self._warned:
                self._warned.add((id(tokenizer), part))
                log.warning(
                    "the chat template of %r has no place for %s: the model does not see them. %s.",
                    model.partition("@")[0],
                    shown,
                    _REMEDIES.get(part, _ANY_REMEDY),
                )


def _form(request: ChatRequest) -> Form:
    roles = frozenset(message["role"] for message in request.messages)
    calls = any("tool_calls" in message for message in request.messages)
    named = any(map(_has_name, request.messages))
    return bool(request.tools), roles, calls, named, frozenset(request.template_options)


def _has_name(message: Mapping[str, Any]) -> bool:
    # The result of a tool belongs to its call by the id; templates need no name there.
    return "name" in message and message["role"] != "tool"


def _left_out(request: ChatRequest, tokenizer: ChatTokenizer) -> Iterator[tuple[str, str]]:
    """Yield the parts of a request that are not in its prompt, with words for each."""
    messages = [dict(message) for message in request.messages]
    options = {**request.template_options, "add_generation_prompt": True, "tokenize": False}
    with_tools = {**options, "tools": list(request.tools)} if request.tools else options
    prompt = _rendered(tokenizer, messages, with_tools)
    if prompt is None:
        return
    if request.tools and _rendered(tokenizer, messages, options) == prompt:
        yield "tools", "`tools`"
    for part, (shown, changed) in _changed(messages).items():
        if _rendered(tokenizer, changed, with_tools) == prompt:
            yield part, shown
    source = getattr(tokenizer, "chat_template", None)
    for name in sorted(request.template_options.keys() - _OF_THE_CALL):
        if isinstance(source, str) and name not in source:
            yield f"chat_template_kwargs.{name}", f"`chat_template_kwargs.{name}`"


def _changed(messages: list[dict[str, Any]]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Return messages without tool calls, without names, and with each role's content changed."""
    changed = {
        role: (f"messages of the role {role!r}", _marked(messages, role))
        for role in sorted({message["role"] for message in messages})
    }
    if any("tool_calls" in message for message in messages):
        bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
        changed["tool_calls"] = "`tool_calls` of messages", bare
    if any(map(_has_name, messages)):
        bare = [
            {k: v for k, v in m.items() if k != "name" or m["role"] == "tool"} for m in messages
        ]
        changed["name"] = "`name` of messages", bare
    return changed


def _marked(messages: list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [
        {**m, "content": f"{m['content']}{_MARK}"} if m["role"] == role else m for m in messages
    ]


def _rendered(
    tokenizer: ChatTokenizer, messages: list[dict[str, Any]], options: dict[str, Any]
) -> Any:
    """Return a prompt's text; None where the template refuses, which is not leaving out."""
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        log.debug("the chat template refuses a changed request: %s", error)
        return None
