"""The ids of a prompt whose beginning was served before."""

from __future__ import annotations

import functools

import pytest

from art_core.endpoint.transcripts import Transcripts

END, PAIR = 256, 257


class Tokenizer:
    """Ids are letters' codes, `|` is the end token and "ab" one token of its own; a conversation is
    its messages, each ended with `|`.
    """

    eos_token_id = END
    all_special_ids = (END,)

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text, **options):
        self.encoded.append(text)
        names = {"|": END, "P": PAIR}
        return [names.get(letter, ord(letter)) for letter in text.replace("ab", "P")]

    def decode(self, token_ids, **options):
        return "".join({END: "|", PAIR: "ab"}.get(i) or chr(i) for i in token_ids)

    def apply_chat_template(self, messages, *, tokenize, **options):
        text = "".join(f"{message}|" for message in messages) + ">"
        return self.encode(text) if tokenize else text


def render(tokenizer, *messages):
    return functools.partial(tokenizer.apply_chat_template, messages)


@pytest.fixture
def tokenizer():
    return Tokenizer()


@pytest.fixture
def transcripts(tokenizer):
    """An endpoint that was asked "u" and sampled "ab" letter by letter, then the end."""
    made = Transcripts()
    text, ids = made.prompt(render(tokenizer, "u"), tokenizer)
    assert (text, ids) == ("u|>", [ord("u"), END, ord(">")])
    made.keep(tokenizer, text, ids, [ord("a"), ord("b"), END])
    return made


SERVED = [ord("u"), END, ord(">"), ord("a"), ord("b"), END]


def test_what_was_served_keeps_its_ids_and_only_the_rest_is_encoded(transcripts, tokenizer):
    tokenizer.encoded.clear()
    text, ids = transcripts.prompt(render(tokenizer, "u", ">ab", "ab"), tokenizer)
    assert text == "u|>ab|ab|>"
    assert ids == [*SERVED, PAIR, END, ord(">")]
    assert tokenizer.encoded == ["|ab|>"]


def test_the_longest_beginning_that_was_served_counts(transcripts, tokenizer):
    messages = ["u", ">ab", "v"]
    text, ids = transcripts.prompt(render(tokenizer, *messages), tokenizer)
    transcripts.keep(tokenizer, text, ids, [ord("a"), ord("b"), END])
    _, ids = transcripts.prompt(render(tokenizer, *messages, ">ab", "w"), tokenizer)
    assert ids == [*SERVED, ord("v"), END, *SERVED[2:], ord("w"), END, ord(">")]


def test_text_that_was_not_served_is_encoded_whole(transcripts, tokenizer):
    for messages in (["u", ">abc", "v"], ["v", ">ab"], ["u", "ab"]):
        _, ids = transcripts.prompt(render(tokenizer, *messages), tokenizer)
        assert ids == tokenizer.apply_chat_template(messages, tokenize=True)


def test_an_answer_that_was_cut_off_is_continued_with_the_templates_end(transcripts, tokenizer):
    transcripts.keep(tokenizer, "u|>", SERVED[:3], [ord("a"), ord("b"), ord("c")])
    _, ids = transcripts.prompt(render(tokenizer, "u", ">abc"), tokenizer)
    assert ids == [*SERVED[:5], ord("c"), END, ord(">")]


def test_the_newer_of_two_answers_with_equal_text_stands(transcripts, tokenizer):
    transcripts.keep(tokenizer, "u|>", SERVED[:3], [PAIR, END])
    _, ids = transcripts.prompt(render(tokenizer, "u", ">ab"), tokenizer)
    assert ids == [*SERVED[:3], PAIR, END, ord(">")]


def test_the_least_recently_used_conversation_is_forgotten_first(tokenizer):
    transcripts = Transcripts(max_ids=10)
    prompts = {}
    for name in "uv":
        text, ids = prompts[name] = transcripts.prompt(render(tokenizer, name), tokenizer)
        transcripts.keep(tokenizer, text, ids, [ord("a"), ord("b"), END])

    def remembered(name):
        _, ids = transcripts.prompt(render(tokenizer, name, ">ab"), tokenizer)
        return PAIR not in ids

    assert remembered("v") and remembered("u")
    text, ids = transcripts.prompt(render(tokenizer, "w"), tokenizer)
    transcripts.keep(tokenizer, text, ids, [ord("a"), ord("b"), END])
    assert [remembered(name) for name in "uvw"] == [True, False, True]


def test_one_tokenizers_ids_are_not_anothers(transcripts):
    other = Tokenizer()
    transcripts.prompt(render(other, "v"), other)
    transcripts.keep(other, "v|>", [ord("v"), END, ord(">")], [END])
    _, ids = transcripts.prompt(render(other, "u", ">ab"), other)
    assert ids == other.apply_chat_template(["u", ">ab"], tokenize=True)


def test_a_tokenizer_whose_prompts_are_no_encoding_of_text_is_left_alone():
    class Odd(Tokenizer):
        def encode(self, text, **options):
            return [1, *super().encode(text)] if options else super().encode(text)

    tokenizer, transcripts = Odd(), Transcripts()
    for messages in (["u"], ["u", ">ab"]):
        text, ids = transcripts.prompt(render(tokenizer, *messages), tokenizer)
        assert text is None
        assert ids == tokenizer.apply_chat_template(messages, tokenize=True)


def test_an_end_that_is_encoded_otherwise_than_it_was_sampled_is_not_continued(
    transcripts, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenizer, "encode", lambda text, **options: [ord(x) for x in text])
    _, ids = transcripts.prompt(render(tokenizer, "u", ">ab"), tokenizer)
    assert ids == [*map(ord, "u|>ab|>")]


def test_without_a_known_end_token_every_prompt_is_encoded_whole(tokenizer):
    tokenizer.eos_token_id, transcripts = None, Transcripts()
    for messages in (["u"], ["u", ">ab"]):
        text, ids = transcripts.prompt(render(tokenizer, *messages), tokenizer)
        transcripts.keep(tokenizer, text, ids, [ord("a"), ord("b")])
    assert ids == tokenizer.apply_chat_template(["u", ">ab"], tokenize=True)


def test_ids_that_change_the_text_before_them_are_not_remembered(
    transcripts, tokenizer, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "decode", lambda ids, **options: str(len(ids)))
        transcripts.keep(tokenizer, "u|>", SERVED[:3], [ord("c")])
    _, ids = transcripts.prompt(render(tokenizer, "u", ">c"), tokenizer)
    assert ids == tokenizer.apply_chat_template(["u", ">c"], tokenize=True)


def test_an_end_token_that_is_written_as_nothing_has_no_place_in_a_text():
    class Silent(Tokenizer):
        def decode(self, token_ids, **options):
            return super().decode([i for i in token_ids if i != END])

        def apply_chat_template(self, messages, *, tokenize, **options):
            text = "".join(messages) + ">"
            return self.encode(text) if tokenize else text

    tokenizer, made = Silent(), Transcripts()
    for _ in range(2):
        text, ids = made.prompt(render(tokenizer, "u"), tokenizer)
        assert (text, ids) == ("u>", [ord("u"), ord(">")])
        made.keep(tokenizer, text, ids, [END])
