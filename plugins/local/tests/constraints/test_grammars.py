"""Constraints as grammars: what they allow, in every form of tool calls, and what is refused."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

sys.path.append(str(Path(__file__).parents[4] / "tests" / "tokens"))
from families import KINDS, family

from art_core.base.errors import ConfigError, EngineError
from art_core.endpoint.answer import read_answer
from art_core.endpoint.constraint import Constraint, Form
from art_core.endpoint.text import Detokenizer
from art_local.constraints.calls import USUAL, call_format
from art_local.constraints.grammar import LocalGrammars
from art_local.constraints.vocabulary import Vocabulary

HI = [{"role": "user", "content": "hi"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {
                "where": {"enum": ["here", "there"]},
                "far": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["where", "far"],
            "additionalProperties": False,
        },
    },
}
WAIT = {"type": "function", "function": {"name": "wait_for", "parameters": {
    "type": "object", "properties": {"long": {"type": "boolean"}}, "required": ["long"],
    "additionalProperties": False}}}  # fmt: skip
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if not loop.first }}<tool_call>\n"
    "<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMED = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}</s>{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def changed(name, *, template=None, added=()):
    """A family's tokenizer with another template. Bytes are tokens of the vocabulary, as they are
    in published ones.
    """
    found = family(name).tokenizer
    stored = json.loads(found.backend_tokenizer.to_str())
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["content"][:3] != "<0x"]
    for place, text in enumerate(added):
        entry = {**stored["added_tokens"][-1], "content": text, "id": len(found) + place}
        stored["added_tokens"].append(entry)
    from tokenizers import Tokenizer

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
        eos_token=found.eos_token,
        bos_token=found.bos_token,
    )
    made.chat_template = template or found.chat_template
    return made


FORMS = {
    **{name: changed(name) for name in KINDS},
    "qwen3-coder": changed("qwen3", template=TAGGED),
    "mistral-named": changed("mistral", template=NAMED, added=["[ARGS]"]),
    "no calls": changed("chatml", template=PLAIN),
}


def vocabulary_of(tokenizer):
    return Vocabulary(tokenizer, len(tokenizer))


def grammars_of(tokenizer, ends=()):
    """The grammars of a model of which only the size of the vocabulary and the ends are read."""
    head = SimpleNamespace(weight=torch.empty(len(tokenizer), 1))
    config = SimpleNamespace(eos_token_id=[*ends])
    model = SimpleNamespace(generation_config=config, get_output_embeddings=lambda: head)
    return LocalGrammars.of(tokenizer, model)


def prompt_of(tokenizer):
    return tokenizer.apply_chat_template(HI, add_generation_prompt=True, return_dict=False)


def written(tokenizer, constraint, seed, *, limit=300, prompt=None, ends=()):
    """An answer that is drawn evenly among the allowed tokens, and whether it is complete."""
    vocabulary = vocabulary_of(tokenizer)
    prompt = prompt_of(tokenizer) if prompt is None else prompt
    grammar = grammars_of(tokenizer, ends).grammar(constraint, prompt)
    matcher, draw, ids = vocabulary.matcher(grammar), random.Random(seed), []
    detokenizer = Detokenizer(tokenizer, tools=True)
    text = ""
    for _ in range(limit):
        mask = np.frombuffer(matcher.mask(), dtype=np.uint8)
        (allowed,) = np.unpackbits(mask, bitorder="little").nonzero()
        ids.append(int(draw.choice(allowed)))
        matcher.take(ids[-1])
        if ids[-1] in {tokenizer.eos_token_id, *ends}:
            list(vocabulary.masks(grammar, ids))
            return ids, text + detokenizer.flush(), True
        text += detokenizer.add(ids[-1])
    return ids, text, False


def calls_of(text, tools):
    functions = {t["function"]["name"]: t["function"].get("parameters") for t in tools}
    answer = read_answer(text, functions, None)
    return answer, [(call.name, json.loads(call.arguments)) for call in answer.calls]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_forced_calls_are_read_back_in_every_form_that_templates_have(form, seed):
    tokenizer = FORMS[form]
    constraint = Constraint(functions=(LOOK, WAIT), required=True)
    prompt = [*prompt_of(tokenizer), *tokenizer.encode("</think>", add_special_tokens=False)]
    _, text, complete = written(tokenizer, constraint, seed, prompt=prompt, limit=3000)
    answer, calls = calls_of(text, [LOOK, WAIT])
    assert complete and calls and not answer.content
    for name, arguments in calls:
        assert name in ("look", "wait_for")
        if name == "look":
            assert arguments["where"] in ("here", "there") and 0 <= arguments["far"] <= 9
        else:
            assert isinstance(arguments["long"], bool)


@pytest.mark.parametrize("form", FORMS)
def test_a_named_tool_is_called_once_without_parallel_calls(form):
    constraint = Constraint(functions=(WAIT,), required=True, parallel=False)
    for seed in range(3):
        _, text, complete = written(FORMS[form], constraint, seed, prompt=())
        assert complete
        assert [name for name, _ in calls_of(text, [LOOK, WAIT])[1]] == ["wait_for"]


@pytest.mark.parametrize("form", [form for form in FORMS if form != "llama3"])
def test_several_calls_may_be_written_where_the_template_writes_several(form):
    constraint = Constraint(functions=(WAIT,), required=True)
    found = [
        len(calls_of(written(FORMS[form], constraint, seed, prompt=(), limit=2000)[1], [WAIT])[1])
        for seed in range(12)
    ]
    assert max(found) > 1


@pytest.mark.parametrize("form", FORMS)
def test_without_parallel_calls_text_stays_free_and_one_call_is_the_last_thing(form):
    tokenizer = FORMS[form]
    vocabulary = vocabulary_of(tokenizer)
    grammar = grammars_of(tokenizer).grammar(Constraint(functions=(WAIT,), parallel=False), ())
    once = Constraint(functions=(WAIT,), required=True, parallel=False)
    _, call, _ = written(tokenizer, once, 0, prompt=())
    for text in ("yes or no", call):
        matcher = vocabulary.matcher(grammar)
        encoded = vocabulary._known_tokens().tokenize_str(text, parse_special=True)
        for token in encoded:
            assert matcher.mask()[token >> 3] >> (token & 7) & 1, (text, token)
            matcher.take(token)
        assert matcher.mask()[tokenizer.eos_token_id >> 3] >> (tokenizer.eos_token_id & 7) & 1


def test_a_template_that_writes_no_calls_gets_the_usual_form():
    assert call_format(FORMS["no calls"]) == USUAL
    assert call_format(FORMS["chatml"]) == USUAL


@pytest.mark.parametrize(
    ("form", "valid"),
    [
        (Form("json", '{"enum": ["a", 1, null]}', "f"), lambda t: json.loads(t) in ("a", 1, None)),
        (Form("json", '{"type": "boolean"}', "f"), lambda t: isinstance(json.loads(t), bool)),
        (Form("regex", r"[ab]{3}/\d{2}", "f"), lambda t: len(t) == 6 and t[3] == "/"),
        (Form("grammar", 'start: "x" word\nword: "yes" | "no"', "f"), lambda t: t[1:] in "yesno"),
        (Form("grammar", 'root ::= "x" ("yes" | "no")', "f"), lambda t: t[1:] in "yesno"),
    ],
)
@pytest.mark.parametrize("name", ["chatml", "mistral"])
def test_a_text_of_a_form(name, form, valid):
    for seed in range(3):
        _, text, complete = written(FORMS[name], Constraint(form=form), seed)
        assert complete and valid(text.strip())


def test_thoughts_come_before_the_form_where_the_template_has_them():
    tokenizer = FORMS["qwen3"]
    constraint = Constraint(form=Form("regex", "ab", "f"))
    grammars = grammars_of(tokenizer)
    prompt = prompt_of(tokenizer)
    think, closed = (tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))

    def fits(text, prompt):
        vocabulary = grammars.vocabulary
        matcher = vocabulary.matcher(grammars.grammar(constraint, prompt))
        for token in vocabulary._known_tokens().tokenize_str(text, parse_special=True):
            if not matcher.mask()[token >> 3] >> (token & 7) & 1:
                return False
            matcher.take(token)
        end = tokenizer.eos_token_id
        return bool(matcher.mask()[end >> 3] >> (end & 7) & 1)

    assert fits("ab", prompt) and fits("<think>\nwhy ab?\n</think>\n\nab", prompt)
    assert fits("why\n</think>\n\nab", [*prompt, think]) and not fits("ab", [*prompt, think])
    assert fits("ab", [*prompt, think, closed])
    assert not fits("<think>\nwhy\n</think>\n\nab", [*prompt, think, closed])
    assert not fits("<think>\nwhy\n</think>\n\nab", ())


def test_an_answer_may_also_end_with_the_models_other_end_tokens():
    tokenizer = FORMS["chatml"]
    other = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    constraint = Constraint(form=Form("regex", "a", "f"))
    ends = {
        written(tokenizer, constraint, seed, ends=(other, tokenizer.eos_token_id))[0][-1]
        for seed in range(20)
    }
    assert ends == {other, tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form("json", '{"type": "thing"}', "f"), "Invalid type: thing"),
        (Form("json", '{"not": {}}', "f"), 'Unimplemented keys: ["not"]'),
        (Form("json", '{"type": "string", "pattern": "(?=a)"}', "f"), "look-around"),
        (Form("json", '{"$ref": "#/$defs/x"}', "f"), "does not exist"),
        (Form("json", '{"type": "string", "minLength": 2, "maxLength": 1}', "f"), "Unsatisfiable"),
        (Form("json", "false", "f"), "false allows no value"),
        (Form("json", json.dumps({"allOf": [{"$ref": "#"}] * 1001}), "f"), "at most 1000 ref"),
        (Form("regex", "[a-", "f"), "unclosed character class"),
        (Form("regex", "(" * 500 + ")" * 500, "f"), "nest"),
        (Form("grammar", "start: x", "f"), "unknown name"),
        (Form("grammar", 'start: "a" }', "f"), "expecting rule"),
        (Form("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "f"), "too deeply nested"),
        (Form("grammar", "\n".join(f"r{i}: r{i + 1}" for i in range(1001)), "f"), "1000 rules"),
        (Form("grammar", "\n".join(["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)),
                                    'T40: "a"']), "f"), "too big"),
        (Form("grammar", 'root ::= "', "f"), "neither a Lark nor a GBNF grammar"),
    ],
)  # fmt: skip
def test_what_does_not_compile_is_refused_with_the_reason(form, reason):
    grammars = grammars_of(FORMS["chatml"])
    with pytest.raises(ConfigError, match=reason.replace("[", r"\[")):
        grammars.grammar(Constraint(form=form), ())


def test_a_schema_of_a_function_is_refused_with_its_name():
    odd = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    grammars = grammars_of(FORMS["chatml"])
    with pytest.raises(ConfigError, match="function 'f': Unimplemented keys"):
        grammars.grammar(Constraint(functions=(odd,), required=True), ())
    text = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    odd = {"type": "function", "function": {"name": "f", "parameters": text}}
    grammars = grammars_of(FORMS["qwen3-coder"])
    with pytest.raises(ConfigError, match="function 'f': a: maxLength is not supported"):
        grammars.grammar(Constraint(functions=(odd,), required=True), ())


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = changed("chatml")
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end token"):
        grammars_of(tokenizer).grammar(Constraint(form=Form("regex", "a", "f")), ())


def test_an_answer_that_its_grammar_does_not_allow_is_an_error():
    vocabulary = vocabulary_of(FORMS["chatml"])
    ids = FORMS["chatml"].encode("ab")
    with pytest.raises(ConfigError, match="not allowed by the answer's grammar"):
        list(vocabulary.masks("start: /b+/", ids))


def test_a_grammar_that_becomes_too_complex_ends_with_an_error():
    vocabulary = vocabulary_of(FORMS["chatml"])
    matcher = vocabulary.matcher("start: /(a{1,1000}){1,1000}b{1000}/")
    token = FORMS["chatml"].encode("a")[0]
    with pytest.raises(EngineError, match="cannot be followed: lexer error: too many expressions"):
        for _ in range(200):
            matcher.mask()
            matcher.take(token)


def test_grammars_that_are_used_no_more_are_forgotten():
    vocabulary = vocabulary_of(FORMS["chatml"])
    for place in range(70):
        vocabulary.matcher(f"start: /a{{{place + 1}}}/")
    assert len(vocabulary._compiled) == 64
