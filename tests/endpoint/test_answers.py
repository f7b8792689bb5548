"""An answer taken apart, whole and as it grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.endpoint.answer import GrowingAnswer, read_answer

CALL = '<tool_call>\n{"name": "pay", "arguments": {"euros": 1}}\n</tool_call>'
DRAFT = CALL.replace("1", "9")
BARE = '{"name": "pay", "parameters": {"euros": 1}}'
TAGGED = "<function=pay>\n<parameter=page>\n{}\n</parameter>\n</function>"
OFFERED = {"pay": None}

# text, thoughts, content, arguments of calls
ANSWERS = {
    "none": ("No.", None, "No.", []),
    "thoughts": ("<think>\nOne it is.\n</think>\n\nYes.\n", "One it is.", "Yes.\n", []),
    "no thoughts between the tags": ("<think>\n\n</think>\n\nYes.", "", "Yes.", []),
    "a draft": (f"<think>\nOr {DRAFT}?\n</think>\n\nNo.", f"Or {DRAFT}?", "No.", []),
    "a draft, then a call": (f"<think>{DRAFT}</think>{CALL}", DRAFT, "", ['{"euros": 1}']),
    "a tag is named": (f"<think>I use <tool_call>.</think>{CALL}", "I use <tool_call>.", "",
                       ['{"euros": 1}']),
    "calls without a marker": (f"<think>a</think>\n{BARE}", "a", "", ['{"euros": 1}']),
    "Mistral's tags": (f"[THINK]a[/THINK]Yes.[TOOL_CALLS]{BARE}", "a", "Yes.", ['{"euros": 1}']),
    "never closed": (f"<think>\nOr {DRAFT}", f"Or {DRAFT}", "", []),
    "opened by nobody": (f"Or {DRAFT}?\n</think>\n\n{CALL}", f"Or {DRAFT}?", "", ['{"euros": 1}']),
    "opened by nobody, before a bare call": (f"Or.</think>\n{BARE}", "Or.", "", ['{"euros": 1}']),
    "a closing tag in a sentence": ("Write </think> to end.", None, "Write </think> to end.", []),
    "a second closing tag": ("<think>a</think>b\n</think>\n", "a", "b\n</think>\n", []),
    "a closing tag in a value": (TAGGED.format("a\n</think>\nb"), None, "",
                                 ['{"page": "a\\n</think>\\nb"}']),
    "thoughts in the middle": (f"Well.<think>{DRAFT}</think> So.{CALL}", None,
                               f"Well.<think>{DRAFT}</think> So.", ['{"euros": 1}']),
    "a tag in the middle": (f"I use <think>. {CALL}", None, "I use <think>.", ['{"euros": 1}']),
    "spaces before the tag": ("\n <think>a</think> Yes.", "a", "Yes.", []),
}  # fmt: skip


def apart(answer):
    thoughts = None if answer.thoughts is None else answer.thoughts.text
    return thoughts, answer.content, [call.arguments for call in answer.calls]


def grown(pieces, functions, closing=None):
    """Return what a stream shows, and the answer at its end."""
    growing = GrowingAnswer(functions, closing)
    shown = [growing.add(piece) for piece in pieces]
    rest, answer = growing.end()
    shown.append(rest)
    thoughts = [each.thoughts for each in shown if each.thoughts is not None]
    content = "".join(each.content for each in shown)
    return "".join(thoughts) if thoughts else None, content, answer


@pytest.mark.parametrize("case", ANSWERS)
def test_thoughts_content_and_calls_are_told_apart(case) -> None:
    text, *expected = ANSWERS[case]
    assert apart(read_answer(text, OFFERED)) == tuple(expected)


@pytest.mark.parametrize("case", [case for case in ANSWERS if "nobody" not in case])
def test_a_stream_shows_the_same(case) -> None:
    text, thoughts, content, calls = ANSWERS[case]
    *shown, answer = grown(text, OFFERED)
    assert shown == [thoughts, content]
    assert apart(answer) == (thoughts, content, calls)


def test_without_tools_thoughts_are_read_and_calls_are_not() -> None:
    text = f"<think>a</think>\n\n{CALL} "
    assert apart(read_answer(text, {})) == ("a", f"{CALL} ", [])
    assert grown(text, {})[:2] == ("a", f"{CALL} ")


@pytest.mark.parametrize(
    ("text", "thoughts", "content"),
    [
        ("\na\n</think>\n\nYes.", "a", "Yes."),
        ("<think>\na</think>Yes.", "a", "Yes."),
        ("never closed\n", "never closed", ""),
        ("</think>Yes.", "", "Yes."),
        ("", "", ""),
    ],
)
def test_thoughts_that_the_prompt_has_opened_need_no_tag(text, thoughts, content) -> None:
    assert apart(read_answer(text, {}, "</think>")) == (thoughts, content, [])
    assert grown(text, {}, "</think>")[:2] == (thoughts, content)


def test_a_stream_of_thoughts_that_nobody_opened_shows_their_beginning_as_content() -> None:
    thoughts, content, answer = grown("Or that?\n</think>\n\nYes.", {})
    assert (thoughts, content) == ("", "Or that?\nYes.")
    thoughts, content, answer = grown(f"Or {DRAFT}?\n</think>\n\n{CALL}", OFFERED)
    assert (thoughts, content) == (f" {DRAFT}?", "Or")
    assert [call.arguments for call in answer.calls] == ['{"euros": 1}']


def test_text_is_shown_as_soon_as_it_can_be_no_tag() -> None:
    growing = GrowingAnswer(OFFERED)
    shown = [growing.add(piece) for piece in ("<", "b>", " a ", "<tool", "_c ", "<tool_call>", "x")]
    assert [each.content for each in shown] == ["", "<b>", " a", "", " <tool_c", "", ""]


def test_a_list_is_held_back_only_if_it_may_be_one_of_calls() -> None:
    for pieces, expected in (
        (["[", "1] a"], ["", "[1] a"]),
        (["[", " ", '{"a'], ["", "", ""]),
        (["<think>a</think>[", "b"], ["", "[b"]),
    ):
        growing = GrowingAnswer(OFFERED)
        assert [growing.add(piece).content for piece in pieces] == expected


PIECES = [
    "<think>", "</think>", "[THINK]", "<tool_call>", "</tool_call>", "<function=pay>",
    "</function>", "[TOOL_CALLS]", BARE, CALL, "{", "[", "\n", " ", "a", "<", "b.",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), max_size=8),
    st.sampled_from([{}, OFFERED]),
    st.sampled_from([None, "</think>"]),
    st.randoms(use_true_random=False),
)
def test_a_stream_says_what_the_whole_says_however_it_is_cut(parts, functions, closing, draw):
    text = "".join(parts)
    cuts = sorted(draw.randrange(len(text) + 1) for _ in range(4))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    thoughts, content, answer = grown(pieces, functions, closing)
    whole = read_answer(text, functions, closing)
    assert apart(answer) == apart(whole)
    if not text.lstrip().startswith(("<think>", "[THINK]")) and closing is None and whole.thoughts:
        return  # thoughts without an opening tag: see above
    assert (thoughts, content) == apart(whole)[:2]
