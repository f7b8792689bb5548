"""A request continues a conversation, in the forms in which clients send answers back."""

import pytest

from art_core.client.recorder import add_choice
from art_core.data.trajectory import Trajectory

ASK = {"role": "user", "content": "Paris?"}
MORE = {"role": "user", "content": "more"}


def choice(**message):
    return {"message": {"role": "assistant", **message}, "finish_reason": "stop"}


def call(arguments, **more):
    return {"type": "function", "function": {"name": "f", "arguments": arguments}} | more


ANSWERS = [
    (choice(content="yes"), {"role": "assistant", "content": "yes"}),
    (choice(content="yes\n"), {"role": "assistant", "content": "yes", "refusal": None}),
    (
        choice(content="yes"),
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "name": "bot"},
    ),
    (
        choice(content=None, tool_calls=[call('{"x": 1}', id="a")]),
        {"role": "assistant", "content": "", "tool_calls": [call('{"x":1}', id="b")]},
    ),
    (
        choice(content="", tool_calls=[call("{x", id="a")]),
        {"role": "assistant", "tool_calls": [call("{x", id="a")]},
    ),
    (choice(content=""), {"role": "assistant", "content": [{"type": "text", "text": ""}]}),
    (choice(content=None), {"role": "assistant", "content": []}),
    (
        choice(content=None, refusal="I can't"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I can't"}]},
    ),
    (choice(content=None, refusal="I can't"), {"role": "assistant", "content": "I can't"}),
    (choice(content="<think>hm</think>\n\nyes"), {"role": "assistant", "content": "yes"}),
    (
        choice(content="yes", reasoning_content="hm"),
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"},
    ),
    (
        choice(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]),
        {"role": "assistant", "content": ["yes"]},
    ),
    (
        choice(content=None, tool_calls=[call("", id="a")]),
        {"role": "assistant", "tool_calls": [call("{}")]},
    ),
    (
        choice(content=None, tool_calls=[call({"x": 1})]),
        {"role": "assistant", "tool_calls": [call('{"x": 1}')]},
    ),
]


@pytest.mark.parametrize(("answer", "sent_back"), ANSWERS)
def test_an_answer_is_known_again_in_the_form_in_which_it_is_sent_back(answer, sent_back):
    trajectory, end = Trajectory(), choice(content="end")
    add_choice(trajectory, [ASK], None, answer)
    add_choice(trajectory, [ASK, sent_back, MORE], None, end)
    assert trajectory.messages_and_choices == [ASK, answer, MORE, end]
    assert trajectory.additional_histories == []


def test_other_messages_are_known_again_too():
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    before = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [image]}]
    again = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"image_url": {"url": "data:"}, "type": "image_url"}]},
    ]
    trajectory, answer, end = Trajectory(), choice(content="yes"), choice(content="end")
    add_choice(trajectory, before, None, answer)
    add_choice(trajectory, [*again, answer["message"], MORE], None, end)
    assert trajectory.messages_and_choices == [*before, answer, MORE, end]


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "yes"},
        {"role": "assistant", "content": "yes", "tool_calls": [call("{}")]},
        {"role": "assistant", "content": [{"type": "image"}]},
    ],
)
def test_a_history_that_the_client_changed_is_another_conversation(changed):
    trajectory, answer, end = Trajectory(), choice(content="yes"), choice(content="end")
    add_choice(trajectory, [ASK], None, answer)
    add_choice(trajectory, [ASK, changed, MORE], None, end)
    assert trajectory.messages_and_choices == [ASK, answer]
    (other,) = trajectory.additional_histories
    assert other.messages_and_choices == [ASK, changed, MORE, end]


def test_the_same_question_again_is_another_conversation_and_either_can_go_on():
    trajectory, first, second = Trajectory(), choice(content="one"), choice(content="two")
    for answer in (first, second):
        add_choice(trajectory, [ASK], None, answer)
    end = choice(content="end")
    add_choice(trajectory, [ASK, first["message"], MORE], None, end)
    assert trajectory.messages_and_choices == [ASK, first, MORE, end]
    (other,) = trajectory.additional_histories
    assert other.messages_and_choices == [ASK, second]
    add_choice(trajectory, [ASK, second["message"], MORE], None, end)
    assert len(other.messages_and_choices) == 4


def sampled(text, prompt_ids, token_ids):
    logprobs = {"content": [{"logprob": -0.5} for _ in token_ids]}
    tokens = {"prompt_token_ids": prompt_ids, "token_ids": token_ids, "logprobs": logprobs}
    return choice(content=text) | tokens


@pytest.mark.parametrize(("prompt_ids", "others"), [([1, 2, 3, 4], 0), ([1, 2, 9, 4], 1)])
def test_a_prompt_that_begins_with_a_turns_tokens_goes_on_with_it_in_whatever_words(
    prompt_ids, others
):
    """A stop string is cut off an answer; some clients put it back."""
    trajectory = Trajectory()
    add_choice(trajectory, [ASK], None, sampled("do", [1], [2, 3]))
    again = {"role": "assistant", "content": "do</code>"}
    add_choice(trajectory, [ASK, again, MORE], None, sampled("end", prompt_ids, [5]))
    assert len(trajectory.additional_histories) == others
    assert len(trajectory.messages_and_choices) == (2 if others else 4)


def test_another_image_in_the_same_tokens_is_another_conversation():
    def seen(prompt, *images):
        tokens = {"prompt_token_ids": prompt, "token_ids": [7], "prompt_images": [*images]}
        return choice(content="yes") | tokens | {"logprobs": {"content": [{"logprob": -1.0}]}}

    trajectory = Trajectory()
    add_choice(trajectory, [ASK], None, seen([1], "one"))
    add_choice(trajectory, [{"role": "user", "content": "Rome?"}, MORE], None, seen([1, 7], "two"))
    assert len(trajectory.additional_histories) == 1
    add_choice(trajectory, [ASK, MORE, MORE], None, seen([1, 7, 8], "one", "two"))
    assert len(trajectory.additional_histories) == 1
