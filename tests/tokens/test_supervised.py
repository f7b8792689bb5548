"""Given conversations as tokens, over four families of templates: what is trained is what the
engine would sample after the prompt that it would see.
"""

from __future__ import annotations

import jinja2
import pytest
from conversations import TOOLS
from families import KINDS, call_text, family

import art_core as art
from art_core.base.images import data_url
from art_core.data.trajectory import ChoiceTokens
from art_core.endpoint.supervised import trained_turns
from art_core.rl.sft import example_size, sft_sequences

SYSTEM = {"role": "system", "content": "Answer naïve façade."}
CALL = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "look", "arguments": '{"where": "here"}'},
}


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture(params=KINDS)
def kind(request):
    return family(request.param)


def turns(kind, *messages, tools=None, **options):
    history = art.History(messages_and_choices=list(messages), tools=tools)
    return trained_turns(history, kind.tokenizer, **options)


def texts(kind, found):
    decode = kind.tokenizer.decode
    return [(decode(list(t.prompt_ids)), decode(list(t.completion_ids)).strip()) for t in found]


def prompt_of(kind, *messages, tools=None):
    options = {"tools": tools} if tools else {}
    return kind.tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **options
    )


def thoughtless(kind, text):
    """Qwen 3's template opens and closes thoughts before an answer without any."""
    return f"<think>\n\n</think>\n\n{text}" if kind.name == "qwen3" else text


def test_each_assistant_message_is_trained_after_the_prompt_that_the_engine_sees(kind):
    script = [user("yes or no?"), says("yes"), user("sure?"), says("the lamp is lit")]
    found = turns(kind, *script)
    end = kind.tokenizer.eos_token
    assert [answer for _, answer in texts(kind, found)] == [
        thoughtless(kind, "yes") + end,
        thoughtless(kind, "the lamp is lit") + end,
    ]
    for turn, place in zip(found, (1, 3), strict=True):
        assert list(turn.prompt_ids) == prompt_of(kind, *script[:place])


def test_a_conversation_is_one_sequence_where_the_template_keeps_what_was_said(kind):
    script = [user("yes or no?"), says("yes"), user("sure?"), says("no")]
    example = art.Trajectory(messages_and_choices=script)
    sequences = sft_sequences(example, lambda h: trained_turns(h, kind.tokenizer))
    assert len(sequences) == (2 if kind.name == "qwen3" else 1)  # which drops empty thoughts
    trained = [t for s in sequences for t, on in zip(s.token_ids, s.trainable, strict=True) if on]
    assert trained.count(kind.tokenizer.eos_token_id) == 2


def test_a_system_message_is_context_also_where_the_template_moves_it(kind):
    script = [SYSTEM, user("yes or no?"), says("yes"), user("sure?"), says("no")]
    found = turns(kind, *script)
    assert [answer for _, answer in texts(kind, found)] == [
        thoughtless(kind, text) + kind.tokenizer.eos_token for text in ("yes", "no")
    ]
    for turn, place in zip(found, (2, 4), strict=True):
        assert list(turn.prompt_ids) == prompt_of(kind, *script[:place])
        assert "façade" in kind.tokenizer.decode(list(turn.prompt_ids))


def test_tool_calls_are_trained_and_their_results_are_context(kind):
    script = [
        user("how is the weather?"),
        says(None, tool_calls=[CALL]),
        {"role": "tool", "tool_call_id": CALL["id"], "content": "very cold"},
        says("cold"),
    ]
    found = turns(kind, *script, tools=TOOLS)
    (_, call), (_, answer) = texts(kind, found)
    assert call.endswith(call_text(kind, "here") + kind.tokenizer.eos_token)
    assert answer == thoughtless(kind, "cold") + kind.tokenizer.eos_token
    called = {"name": "look", "arguments": {"where": "here"}}
    assert list(found[1].prompt_ids) == prompt_of(
        kind,
        script[0],
        says("", tool_calls=[{**CALL, "function": called}]),
        script[2],
        tools=TOOLS,
    )


def test_a_message_of_weight_zero_is_context(kind):
    script = [user("yes or no?"), says("yes", weight=0), user("sure?"), says("no", weight=1)]
    (turn,) = turns(kind, *script)
    assert texts(kind, [turn])[0][1] == thoughtless(kind, "no") + kind.tokenizer.eos_token


def test_unicode_is_trained_as_the_tokenizer_spells_it(kind):
    (turn,) = turns(kind, user("Ångström"), says("très froid 你好 👩‍👩‍👧‍👦 שלום"))
    text = kind.tokenizer.decode(list(turn.completion_ids))
    assert text.strip() == (
        thoughtless(kind, "très froid 你好 👩‍👩‍👧‍👦 שלום") + kind.tokenizer.eos_token
    )


def test_an_assistant_turn_first_is_trained_or_refused_with_the_reason(kind):
    script = [says("hello, how is it?"), user("cold"), says("yes")]
    if kind.name == "mistral":
        with pytest.raises(art.ConfigError, match="cannot render it .*roles must alternate"):
            turns(kind, *script)
        return
    first, second = texts(kind, turns(kind, *script))
    assert first[1].endswith("hello, how is it?" + kind.tokenizer.eos_token)
    assert "hello" not in first[0]
    assert second[1] == thoughtless(kind, "yes") + kind.tokenizer.eos_token


def test_a_conversation_longer_than_the_context_is_refused_with_its_length(kind):
    long = [user("look " * 200_000), says("yes")]
    example = art.Trajectory(messages_and_choices=long)

    def of(history):
        return trained_turns(history, kind.tokenizer, context_length=2048)

    assert "tokens, and the context of the model holds 2,048" in example_size(example, of).problem
    assert example_size(art.Trajectory(messages_and_choices=[user("a"), says("b")]), of).trained


def test_choices_with_the_engines_tokens_are_trained_as_they_were_sampled(kind):
    answer = kind.sampled("the weather in the town is cold", seed=3)
    end = kind.tokenizer.eos_token_id
    prompt = prompt_of(kind, user("how?"))
    choice = {
        "message": says("the weather in the town is cold"),
        "finish_reason": "stop",
        "prompt_token_ids": prompt,
        "token_ids": [*answer, end],
        "logprobs": {"content": [{"logprob": -1.0}] * (len(answer) + 1)},
    }
    (turn,) = turns(kind, user("how?"), choice)
    assert turn.completion_ids == (*answer, end)
    (turn,) = turns(kind, user("how?"), says("few-shot"), user("how?"), choice)
    assert turn.completion_ids == (*answer, end)  # other messages are context


@pytest.mark.parametrize("ids", [[1, 2, 3], [10**9]])
def test_tokens_of_another_tokenizer_are_not_trained(ids):
    kind = family("chatml")
    choice = {
        "message": says("the lamp is lit"),
        "finish_reason": "stop",
        "prompt_token_ids": [5],
        "token_ids": ids,
        "logprobs": {"content": [{"logprob": -1.0}] * len(ids)},
    }
    (turn,) = turns(kind, user("how?"), choice)
    assert list(turn.prompt_ids) == prompt_of(kind, user("how?"))
    assert kind.tokenizer.decode(list(turn.completion_ids)) == "the lamp is lit<|im_end|>"


def test_a_choice_without_tokens_is_rendered_and_other_messages_are_context():
    kind = family("chatml")
    choice = {"message": says("no"), "finish_reason": "stop"}
    (turn,) = turns(kind, user("a"), says("yes"), user("b"), choice)
    assert kind.tokenizer.decode(list(turn.completion_ids)) == "no<|im_end|>"


MASKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Retemplated:
    """A family with another template; its tokenizer is not changed."""

    def __init__(self, name, template):
        self.tokenizer = family(name).tokenizer.__class__(
            tokenizer_object=family(name).tokenizer.backend_tokenizer,
            eos_token="<|im_end|>",
            clean_up_tokenization_spaces=False,
        )
        self.tokenizer.chat_template = template


def test_a_generation_mask_decides_and_equals_the_difference_of_prefixes():
    masked = Retemplated("chatml", MASKED)
    plain = Retemplated(
        "chatml", MASKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    )
    script = [user("yes or no?"), says("yes"), user("sure?"), says("no", weight=0), user("no?")]
    script += [says("the lamp is lit")]
    found = turns(masked, *script)
    assert len(found) == 2
    assert [(t.prompt_ids, t.completion_ids) for t in found] == [
        (t.prompt_ids, t.completion_ids) for t in turns(plain, *script)
    ]


def test_a_mask_that_does_not_mark_each_answer_is_not_used():
    none = MASKED.replace("m.role == 'assistant'", "m.role == 'robot'")
    found = turns(Retemplated("chatml", none), user("a"), says("b"))
    assert [len(t.completion_ids) for t in found] == [2]


def test_a_prompt_that_opens_thoughts_is_cut_where_the_conversation_has_none():
    opening = Retemplated(
        "qwen3", MASKED.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
        .replace("{% generation %}", "").replace("{% endgeneration %}", ""),
    )  # fmt: skip
    (turn,) = turns(opening, user("a"), says("yes"))
    decode = opening.tokenizer.decode
    assert decode(list(turn.prompt_ids)).endswith("a<|im_end|><|im_start|>assistant\n")
    assert decode(list(turn.completion_ids)) == "yes<|im_end|>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", "not render"),
        ("{{ messages[-1].content }}", "without its last prompt"),
        ("{{ raise_exception('no') }}", "cannot render it .TemplateError: no"),
        (
            "{% if add_generation_prompt %}{{ raise_exception('no prompt') }}{% endif %}",
            "no prompt",
        ),
    ],
)
def test_a_template_that_leaves_the_answer_out_is_refused(template, said):
    with pytest.raises(art.ConfigError, match=said):
        turns(Retemplated("chatml", template), user("xyz"), says("abc"))


def test_an_answer_whose_first_token_would_span_the_prompt_is_spelled_apart():
    tokenizer = Spanning()
    history = art.History(messages_and_choices=[user("a"), says("b")])
    (turn,) = trained_turns(history, tokenizer)
    assert turn.prompt_ids == (ord("a"), ord(":"))
    assert turn.completion_ids == (ord("b"),)


def test_ids_that_a_tokenizer_cannot_decode_are_those_of_another():
    choice = {
        "message": says("b"),
        "finish_reason": "stop",
        "prompt_token_ids": [5],
        "token_ids": [10**30],
        "logprobs": {"content": [{"logprob": -1.0}]},
    }
    history = art.History(messages_and_choices=[user("a"), choice])
    (turn,) = trained_turns(history, Spanning())
    assert turn.completion_ids == (ord("b"),)


class Spanning:
    """A tokenizer of characters with a token for ":b"."""

    chat_template = (
        "{% for m in messages %}{{ m.content }}{{ ':' if m.role == 'user' }}{% endfor %}"
    )
    eos_token_id = None

    def apply_chat_template(self, conversation, tokenize=False, **options):
        return jinja2.Template(self.chat_template).render(messages=conversation, **options)

    def encode(self, text, **_):
        return [ord(c) for c in text.replace(":b", "\u0001")]

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_invalid_messages_are_refused():
    with pytest.raises(art.ConfigError, match=r"messages\[0\].role"):
        turns(family("chatml"), {"role": "robot", "content": "x"})


def test_nothing_to_train_is_no_turn():
    assert turns(family("chatml"), user("a")) == []
    assert isinstance(turns(family("chatml"), user("a"), says("b"))[0], ChoiceTokens)


class Letters:
    """A tokenizer whose template marks answers and reads images."""

    eos_token_id = None
    chat_template = "{% generation %}"

    def apply_chat_template(self, conversation, *, add_generation_prompt=False, **_):
        texts = [f"{m['role']}:{self.text(m['content'])};" for m in conversation]
        return "".join(texts) + ("assistant:" if add_generation_prompt else "")

    def text(self, content):
        parts = [content] if isinstance(content, str) else content
        return "".join(p if isinstance(p, str) else p.get("text", "*") for p in parts)

    def encode(self, text, **_):
        return list(text.encode())


def test_images_before_an_answer_are_those_of_its_turn():
    url = data_url("image/png", b"one")
    image = {"type": "image_url", "image_url": {"url": url}}
    asked = {"role": "user", "content": [{"type": "text", "text": "What?"}, image]}
    items = [user("Hi."), says("Hm."), asked, says("A cat.")]
    first, second = trained_turns(art.History(messages_and_choices=items), Letters())
    assert (first.images, second.images) == ((), (url,))
    assert bytes(second.prompt_ids) == b"user:Hi.;assistant:Hm.;user:What?*;assistant:"
    assert bytes(second.completion_ids) == b"A cat.;"
