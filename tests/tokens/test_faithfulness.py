"""Token in, token out: what is trained is what the engine sampled, over four families of
templates.
"""

from __future__ import annotations

import os

import pytest
from conversations import (
    TOOLS,
    Answer,
    Elsewhere,
    Result,
    Stage,
    Step,
    User,
    false_tokens,
    merged_by_text,
    rewritten,
)
from families import KINDS, call_text, family
from hypothesis import given, settings
from hypothesis import strategies as st

from art_core.rl.sequences import turns_of

ODD = [
    User("how is the weather in the river town?"),
    Answer("the weather in the town is cold", odd=1),
    User("and the garden?"),
    Answer("the garden is naïve façade", odd=2),
    User("yes or no?"),
    Answer("no", odd=3),
]
UNICODE = [
    User("e\u0301 Ångström Привет"),
    Answer("A\u030angström e\u0301\u0323 👩‍👩‍👧‍👦👍🏽", odd=4),
    User("你好世界 こんにちは"),
    Answer("你好，今天天气很好 שלום مرحبا", odd=5),
    User("नमस्ते \u202eabc\u202c"),
    Answer("\u200bनमस्ते\ufeff"),
]
CUT = [User("look"), Answer("the weather in the", cut=True), User("go on"), Answer("town", odd=6)]
EMPTY = [User(""), Answer(""), User(""), Answer("yes")]
THOUGHT = [
    User("yes or no?"),
    Answer("<think>\nthe lamp is lit\n</think>\n\nyes"),
    User("sure?"),
    Answer("<think>\nso it is\n</think>\n\nyes"),
    User("really?"),
    Answer("yes"),
]
HASTY = [
    User("yes or no?"),
    Answer("<think>the lamp is lit</think>yes"),
    User("sure?"),
    Answer(" <think>\nso </think>\nyes"),
    User("really?"),
    Answer("yes"),
]
LATE = [User("look"), Answer(" the lamp \n"), User("and?"), Answer("lit")]


@pytest.fixture(scope="session")
def stage():
    made = Stage()
    yield made
    made.close()


@pytest.fixture(scope="session")
def forgetful():
    made = Stage(remembered_ids=0)
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request):
    return family(request.param)


def assert_faithful(outcome, breaks):
    choices = [c for c in outcome.trajectory.messages_and_choices if not isinstance(c, dict)]
    for choice, call in zip(choices, outcome.calls, strict=True):
        assert tuple(choice.prompt_token_ids) == call.prompt
        assert tuple(choice.token_ids) == call.sampled
        assert choice.policy_version == call.version
    assert false_tokens(outcome.sequences, outcome.calls) == 0
    assert outcome.breaks == breaks
    assert len(outcome.sequences) == breaks + 1


@pytest.mark.parametrize("script", [ODD, EMPTY, CUT], ids=["odd", "empty", "cut"])
def test_a_conversation_is_one_sequence_however_its_answers_were_sampled(stage, kind, script):
    assert_faithful(stage.play(kind, script), breaks=0)


def test_combining_marks_emoji_and_writing_from_right_to_left_are_one_sequence(stage, kind):
    assert_faithful(stage.play(kind, UNICODE), breaks=0)


def test_the_sampled_tokens_are_not_the_tokenizers_own(kind):
    """Without this, the tests above would try nothing."""
    answers = [event for event in ODD if isinstance(event, Answer)]
    for answer in answers[:2]:
        own = Answer(answer.text).ids(kind)
        assert answer.ids(kind) != own
        assert kind.tokenizer.decode(answer.ids(kind)) == kind.tokenizer.decode(own)


def tool_script(kind, *, compact=False, odd=None):
    asks = call_text(kind, "the garden", compact=compact)
    return [
        User("how is the weather?"),
        Answer(asks, odd=odd),
        Result('{"weather": "très froid ❄"}'),
        Answer(call_text(kind, "你好", compact=compact), odd=odd),
        Result(""),
        Answer("cold", odd=odd),
    ]


def test_a_loop_of_tool_calls_is_one_sequence(stage, kind):
    outcome = stage.play(kind, tool_script(kind, odd=7), tools=TOOLS)
    messages = outcome.trajectory.messages()
    assert [len(m.get("tool_calls", ())) for m in messages] == [0, 1, 0, 1, 0, 0]
    assert_faithful(outcome, breaks=0)


def test_arguments_that_a_template_writes_anew_break_the_prefix_once_a_call(stage, kind):
    assert_faithful(stage.play(kind, tool_script(kind, compact=True), tools=TOOLS), breaks=2)


def test_tools_before_the_last_question_break_the_prefix_of_mistral_alone(stage, kind):
    outcome = stage.play(kind, [*tool_script(kind), User("sure?"), Answer("yes")], tools=TOOLS)
    assert_faithful(outcome, breaks=1 if kind.name == "mistral" else 0)


def test_thoughts_that_a_template_drops_break_the_prefix_once_each(stage, kind):
    assert_faithful(stage.play(kind, THOUGHT), breaks=2 if kind.name == "qwen3" else 0)


def test_thoughts_come_back_to_other_templates_as_they_were_written(stage, kind):
    outcome = stage.play(kind, HASTY)
    answers = [m for m in outcome.trajectory.messages() if m["role"] == "assistant"]
    assert [m.get("reasoning_content") for m in answers] == ["the lamp is lit", "so", None]
    trims = kind.name in {"llama3", "mistral"}
    assert_faithful(outcome, breaks=2 if kind.name == "qwen3" else int(trims))


def test_thoughts_between_tool_calls_are_kept(stage):
    kind = family("qwen3")
    thought = "<think>\nhm\n</think>\n\n"
    script = [
        User("how is the weather?"),
        Answer(thought + call_text(kind, "here"), odd=8),
        Result("cold"),
        Answer(thought + "cold", odd=9),
    ]
    assert_faithful(stage.play(kind, script, tools=TOOLS), breaks=0)


def test_spaces_that_a_template_trims_break_the_prefix(stage, kind):
    trims = kind.name in {"llama3", "mistral"}
    assert_faithful(stage.play(kind, LATE), breaks=1 if trims else 0)


def test_a_system_message_and_a_prefilled_answer_are_context(stage, kind):
    script = [
        {"role": "system", "content": "Answer naïve façade."},
        User("yes or no?"),
        {"role": "assistant", "content": "maybe"},
        User("yes or no, then?"),
        Answer("no", odd=10),
    ]
    outcome = stage.play(kind, script)
    assert_faithful(outcome, breaks=0)
    assert sum(outcome.sequences[0].trainable) == len(outcome.calls[0].sampled)


@pytest.mark.parametrize("script", [ODD, UNICODE], ids=["odd", "unicode"])
def test_merging_by_text_would_train_tokens_that_were_never_sampled(stage, kind, script):
    """The negative control: the judge of all these tests finds the mistake that is not made."""
    outcome = stage.play(kind, script)
    turns, missing = turns_of(outcome.trajectory.histories()[0])
    assert missing == 0
    assert false_tokens(outcome.sequences, outcome.calls) == 0
    assert false_tokens(merged_by_text(turns, kind), outcome.calls) > 0


def test_turns_of_different_weights_are_one_sequence_that_knows_them(stage, kind):
    script = [User("look"), Answer("the lamp", odd=11), Step(), User("and?"), Answer("lit")]
    outcome = stage.play(kind, script)
    assert [call.version for call in outcome.calls] == [0, 1]
    assert_faithful(outcome, breaks=0)
    assert outcome.sequences[0].policy_versions == (0, 1)


def test_answers_of_one_text_in_other_tokens_break_a_prefix_and_never_merge_falsely(stage, kind):
    """Attempts of a group at the same prompt; what comes back as text is the same for both."""
    answers = [Answer("the weather in the town is cold", odd=seed) for seed in (1, 2)]
    assert answers[0].ids(kind) != answers[1].ids(kind)
    script = [User("how?"), answers[0], Elsewhere(answers[1]), User("sure?"), Answer("yes")]
    assert_faithful(stage.play(kind, script), breaks=1)


def test_an_endpoint_that_remembers_nothing_breaks_prefixes_and_never_merges_falsely(
    forgetful, kind
):
    assert_faithful(forgetful.play(kind, ODD), breaks=2)
    own = [User("a"), Answer("the lamp"), User("b"), Answer("no")]
    assert_faithful(forgetful.play(kind, own), breaks=0)


said = st.text(max_size=12) | st.sampled_from(
    [
        "the weather",
        "naïve façade",
        "e\u0301",
        "👩‍👩‍👧‍👦",
        "<think>\nhm\n</think>\n\nyes",
        " a",
        "a\n",
        "<|im_end|>",
        "[INST]",
        "</s>",
        "<tool_call>",
        '{"name": "shut"}',
        "你好",
        "\u202eabc",
    ]
)


@st.composite
def scripts(draw):
    """Questions and answers in turn, among them calls of the tool and its results."""
    script = []
    for _ in range(draw(st.integers(1, 4))):
        script.append(User(draw(said)))
        for result in draw(st.lists(said, max_size=2)):
            script += ["call", Result(result)]
        odd = draw(st.none() | st.integers(0, 9))
        script.append(Answer(draw(said), odd=odd, cut=draw(st.booleans())))
    return script


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=int(os.environ.get("FAULT_TRIALS") or 12) // 2)
@given(script=scripts(), compact=st.booleans())
def test_whatever_is_said_false_merges_are_zero(stage, forgetful, name, script, compact):
    """And a prefix breaks exactly where the template wrote the history anew."""
    kind = family(name)
    call = Answer(call_text(kind, "here", compact=compact), odd=1)
    script = [call if event == "call" else event for event in script]
    outcome = stage.play(kind, script, tools=TOOLS)
    assert_faithful(outcome, breaks=rewritten(outcome, kind))
    forgot = forgetful.play(kind, script, tools=TOOLS)
    assert_faithful(forgot, breaks=forgot.breaks)
    assert forgot.breaks >= outcome.breaks
