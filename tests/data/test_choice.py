import pytest
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from art_core.base.errors import ConfigError
from art_core.data import choice, trajectory
from art_core.data.trajectory import choice_dict, is_choice, message_dict, message_of, tokens_of


def stored(**more):
    """A choice as a file holds it: the prompt [1, 2], the answer [7, 8]."""
    return {
        "message": {"role": "assistant", "content": "yes"},
        "finish_reason": "stop",
        "prompt_token_ids": [1, 2],
        "token_ids": [7, 8],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1}]},
        "policy_version": 3,
    } | more


def sent(**more):
    """The same choice as the openai client gives it."""
    content = [
        {"token": "y", "bytes": None, "logprob": p, "top_logprobs": []} for p in (-0.5, -1.0)
    ]
    return Choice.construct(**stored(index=0, logprobs={"content": content}) | more)


@pytest.mark.parametrize("choice", [stored(), sent()], ids=["stored", "sent"])
def test_a_choice_has_the_engines_tokens_and_their_logprobs(choice):
    tokens = tokens_of(choice)
    assert tokens is not None
    assert (tokens.prompt_ids, tokens.completion_ids) == ((1, 2), (7, 8))
    assert tokens.logprobs == (-0.5, -1.0)
    assert (tokens.policy_version, tokens.truncated) == (3, False)


def test_an_answer_cut_off_by_the_token_limit_is_truncated():
    tokens = tokens_of(stored(finish_reason="length"))
    assert tokens is not None and tokens.truncated


@pytest.mark.parametrize(
    "lost",
    [
        {"prompt_token_ids": None},
        {"prompt_token_ids": []},
        {"token_ids": None},
        {"token_ids": [7]},
        {"logprobs": None},
        {"logprobs": {"content": None}},
        {"logprobs": {"content": [{"logprob": -0.5}, {"logprob": None}]}},
        {"logprobs": {"content": [{"logprob": -0.5}, {}]}},
    ],
    ids=str,
)
def test_tokens_that_are_not_whole_are_none(lost):
    assert tokens_of(stored(**lost)) is None


def test_a_message_is_taken_out_of_a_choice_without_its_tokens():
    """Each turn asks for all messages before it, and log-probs take long to copy."""

    class Heavy(Choice):
        def model_dump(self, **options):
            raise AssertionError("the whole choice was copied")

    choice = Heavy.construct(**dict(sent()))
    assert message_of(choice) == {"role": "assistant", "content": "yes"}


def test_an_answer_of_no_tokens_is_whole():
    tokens = tokens_of(stored(token_ids=[], logprobs={"content": []}))
    assert tokens is not None and tokens.completion_ids == ()


def test_a_message_is_no_choice():
    assert is_choice(stored()) and is_choice(sent())
    assert not is_choice({"role": "user", "content": "finish_reason"})
    assert not is_choice(ChatCompletionMessage(role="assistant", content="yes"))


def test_a_choice_becomes_an_assistant_message_without_empty_fields():
    expected = {"role": "assistant", "content": "yes"}
    assert message_of(sent()) == message_of(stored()) == expected
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    asking = stored(message={"role": "assistant", "tool_calls": [call], "audio": None})
    assert message_of(asking) == {"role": "assistant", "content": None, "tool_calls": [call]}
    empty = stored(message={"role": "assistant", "content": "", "tool_calls": []})
    assert message_of(empty) == {"role": "assistant", "content": ""}


def test_a_message_is_copied_so_that_changes_do_not_reach_the_conversation():
    original = {"role": "user", "content": "hi"}
    message_of(original)["content"] = "changed"
    assert original["content"] == "hi"


def test_an_openai_message_stands_for_its_dict():
    message = ChatCompletionMessage(role="assistant", content="yes")
    assert message_of(message) == {"role": "assistant", "content": "yes"}
    assert message_of(stored(message=message)) == {"role": "assistant", "content": "yes"}


def test_anything_else_in_a_conversation_is_refused_by_its_type():
    with pytest.raises(ConfigError, match="not str"):
        message_of("hello")
    with pytest.raises(ConfigError, match=r"Append .*choices\[0\]"):
        message_dict(7)


def test_the_dict_form_of_a_choice_is_a_choice_even_when_the_server_gave_no_finish_reason():
    form = choice_dict(sent(finish_reason=None, logprobs=None))
    assert is_choice(form)
    assert form["finish_reason"] is None
    assert form["token_ids"] == [7, 8]
    assert choice_dict(form) == form
    assert choice_dict(form) is not form


def test_other_programs_import_them_by_the_former_path():
    assert choice.is_choice is trajectory.is_choice
    assert choice.tokens_of is trajectory.tokens_of
