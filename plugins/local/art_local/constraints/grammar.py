"""Constraints become grammars in llguidance's form of Lark, the same text for every engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError
from art_core.endpoint.constraint import Constraint, Form
from art_core.endpoint.strict_json import MAX_DEPTH, too_deep
from art_core.endpoint.thoughts import TAGS, opened_by
from art_core.endpoint.tools import MARKERS, schema_types
from art_local.constraints.calls import CallFormat, call_format, quoted
from art_local.constraints.vocabulary import Vocabulary
from art_local.engine.request import end_tokens

MAX_RULES = 1000
"""Rules of a grammar, and references of a schema: chains of thousands overflow the stack."""
WHITESPACE = r"[ \n\t]{0,16}"
"""Between the tokens of JSON, so that no answer is an endless space."""
_ENDING = 16
_ID = "/[a-zA-Z0-9]{9}/"
_TEXT_RULES = ("pattern", "minLength", "maxLength", "format")


class LocalGrammars:
    """Writes the grammars of one model; see `art_core.endpoint.engine.Grammars`.

    `size` is that of the model's logits. An answer may end with each of `ends`; the tokenizer's end
    token ends every complete one.
    """

    def __init__(self, tokenizer: Any, size: int, ends: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer, size)
        self._ends = sorted({*ends} - {tokenizer.eos_token_id})
        self._format: CallFormat | None = None

    @classmethod
    def of(cls, tokenizer: Any, model: Any) -> LocalGrammars:
        """Return the grammars of a loaded model."""
        size = model.get_output_embeddings().weight.shape[0]
        return cls(tokenizer, size, end_tokens(model))

    def grammar(self, constraint: Constraint, prompt_ids: Sequence[int]) -> str:
        """Return the grammar of an answer to a prompt; ConfigError if there can't be one."""
        rules = _Rules(self.vocabulary)
        answer = " | ".join(_alternatives(constraint, rules, self._calls()))
        start = f"{_thoughts(rules, prompt_ids)}({answer})"
        if self._ends:
            start += f" ({' | '.join(f'<[{end}]>' for end in self._ends)})?"
        text = "\n".join([f"start: {start}", *rules.lines])
        self.vocabulary.matcher(text)
        return text

    def rendering(self, tokenizer: Any) -> LocalGrammars:
        """Return these grammars for a tokenizer that renders more in messages, such as images."""
        self.tokenizer = tokenizer
        return self

    def _calls(self) -> CallFormat:
        if self._format is None:
            self._format = call_format(self.vocabulary.tokenizer)
        return self._format


@attrs.define
class _Rules:
    vocabulary: Vocabulary
    lines: list[str] = attrs.field(factory=list)
    specials: dict[str, int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.specials = self.vocabulary.specials()

    def add(self, body: str, name: str = "r", options: str = "") -> str:
        """Add a rule; return its name, which is upper case for a terminal."""
        name = f"{name}{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def literal(self, text: str) -> str:
        """Return a text as a piece of a rule; special tokens in it are tokens."""
        return " ".join(self._literals(text)) or '""'

    def _literals(self, text: str) -> Iterator[str]:
        names = sorted((name for name in self.specials if name in text), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        for part in filter(None, parts):
            known = self.specials.get(part)
            yield json.dumps(part, ensure_ascii=False) if known is None else f"<[{known}]>"

    def until(self, text: str) -> str:
        """Return a rule of any text up to a first `text`, with it."""
        if text in self.specials:
            return f"/(?s:.*)/ <[{self.specials[text]}]>"
        return self.add(f"/(?s:.*){_escaped(text)}/", options="[lazy]")

    def json(self, schema: Any, where: str) -> str:
        """Return a piece of JSON; ConfigError, with `where`, for what llguidance does not have."""
        schema = {} if schema is True else schema
        if schema is False:
            raise ConfigError(f"{where}false allows no value")
        if json.dumps(schema).count('"$ref"') > MAX_RULES or too_deep(schema):
            most = f"{MAX_RULES} references and {MAX_DEPTH} levels"
            raise ConfigError(f"{where}a schema has at most {most}")
        piece = f"%json {json.dumps({'x-guidance': {'whitespace_pattern': WHITESPACE}} | schema)}"
        reason = self.vocabulary.complaint(f"start: {piece}")
        if reason is not None:
            reason = reason.removeprefix("failed to compile JSON schema: ")
            raise ConfigError(f"{where}{reason}")
        return self.add(piece)


def _alternatives(constraint: Constraint, rules: _Rules, form: CallFormat) -> Iterator[str]:
    functions, required = constraint.functions, constraint.required
    if constraint.form is not None and not required:
        yield _content(constraint.form, rules)
    elif not required:
        yield _free_text(rules, form)
    if not functions:
        return
    opening, between = form.opening, form.between if constraint.parallel else None
    before = ""
    if constraint.form is None and not required and form.marker is not None:
        before, opening = f"{rules.until(form.marker)} ", opening.removeprefix(form.marker)
    calls = rules.add(" | ".join(_function(tool, rules, form) for tool in functions))
    more = "" if between is None else f" ({rules.literal(between)} {calls})*"
    yield f"{before}{rules.literal(opening)} {calls}{more} {rules.literal(form.closing)}"


def _free_text(rules: _Rules, form: CallFormat) -> str:
    """Return a text without calls."""
    if form.marker is None:
        return rules.add(r"/([^\s\[{](?s:.*))?/", "TEXT")
    marks = "|".join(map(_escaped, MARKERS))
    return rules.add(f"/(?s:.*)/ & ~/(?s:.*)({marks})(?s:.*)/", "TEXT")


def _content(form: Form, rules: _Rules) -> str:
    if form.kind == "json":
        return rules.json(json.loads(form.text), "")
    if form.kind == "regex":
        piece = _regex(form.text)
        reason = rules.vocabulary.complaint(f"start: {piece}")
    else:
        text = _lark(form.text)
        piece = f"%lark {{\n{text}\n}}"
        reason = rules.vocabulary.complaint(text)
    if reason is not None:
        raise ConfigError(reason)
    return rules.add(piece)


def _regex(pattern: str) -> str:
    import llguidance

    return f"/{llguidance.regex_to_lark(pattern, 'd')}/"


def _lark(text: str) -> str:
    """Return a grammar in Lark's form, also if it is in GBNF's."""
    from llguidance.gbnf_to_lark import any_to_lark

    if text.count(":") > MAX_RULES:
        raise ConfigError(f"a grammar has at most {MAX_RULES} rules")
    try:
        return str(any_to_lark(text))
    except Exception as error:
        raise ConfigError(f"neither a Lark nor a GBNF grammar: {error}"[:500]) from error


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _function(tool: Mapping[str, Any], rules: _Rules, form: CallFormat) -> str:
    """Return the rule of a call of one function."""
    function = tool["function"]
    name, schema = function["name"], function.get("parameters")
    where = f"function {name!r}: "
    schema = schema or {"type": "object"}
    if form.tagged:
        parameters = _tagged_parameters(schema, rules, where)
        opened, closed = rules.literal(f"<function={name}>\n"), rules.literal("</function>")
        return rules.add(f"{opened} {parameters} {closed}")
    arguments = rules.json({"type": "object", **schema}, where)
    written: dict[str, Callable[[str], str]] = {
        "text": rules.literal,
        "name": lambda _: rules.literal(quoted(name)),
        "arguments": lambda _: arguments,
        "id": lambda _: _ID,
    }
    return rules.add(" ".join(written[kind](text) for kind, text in form.call))


def _tagged_parameters(schema: Mapping[str, Any], rules: _Rules, where: str) -> str:
    """Return the piece of the parameters, in the order of the schema; values have no quotes."""
    needed, pieces = schema.get("required") or (), []
    defined = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    for key, each in (schema.get("properties") or {}).items():
        opened = rules.literal(f"<parameter={key}>\n")
        piece = f"({opened} {_tagged_value(each, defined, rules, f'{where}{key}: ')})"
        pieces.append(piece if key in needed else f"{piece}?")
    return " ".join(pieces)


_CLOSED = "\n</parameter>\n"


def _tagged_value(schema: Any, defined: Mapping[str, Any], rules: _Rules, where: str) -> str:
    types = schema_types(schema)
    if types and "string" not in types:
        return f"{rules.json({**defined, **schema}, where)} {rules.literal(_CLOSED)}"
    schema = schema if isinstance(schema, Mapping) else {}
    options = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(options, list) and options:
        texts = [each if isinstance(each, str) else json.dumps(each) for each in options]
        return f"({' | '.join(map(rules.literal, texts))}) {rules.literal(_CLOSED)}"
    odd = [name for name in _TEXT_RULES if name in schema]
    if odd:
        raise ConfigError(f"{where}{odd[0]} is not supported for text in this model's calls")
    return rules.until(_CLOSED)


def _thoughts(rules: _Rules, prompt_ids: Sequence[int]) -> str:
    """Return the piece for thoughts before the answer: needed if the prompt has opened them,
    possible if the chat template has them and the prompt has not closed them.
    """
    tokenizer = rules.vocabulary.tokenizer
    if not prompt_ids:
        return ""
    space = "/[ \\n]{0,4}/"
    opened = opened_by(tokenizer, prompt_ids)
    if opened is not None:
        return f"{rules.until(opened)} {space} "
    template = str(getattr(tokenizer, "chat_template", ""))
    end = tokenizer.decode(prompt_ids[-_ENDING:], skip_special_tokens=False).rstrip()
    for tag, close in TAGS.items():
        if tag in template and not end.endswith(close):
            return f"({rules.literal(tag)} {rules.until(close)} {space})? "
    return ""
