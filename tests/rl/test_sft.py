"""Supervised fine-tuning: options, and conversations as sequences."""

import math

import pytest

import art_core as art
from art_core.data.trajectory import ChoiceTokens
from art_core.rl.losses import loss_preset
from art_core.rl.sft import (
    CROSS_ENTROPY,
    ExampleSize,
    example_size,
    sft_batches,
    sft_config,
    sft_sequences,
)


def turns(history):
    """Each message is a token; those of the assistant are turns."""
    ids = [message["token"] for message in history.messages()]
    return [
        ChoiceTokens(prompt_ids=tuple(ids[:n]), completion_ids=(ids[n],), logprobs=(math.nan,))
        for n, message in enumerate(history.messages())
        if message["role"] == "assistant"
    ]


def example(*roles):
    messages = [{"role": role, "token": n} for n, role in enumerate(roles)]
    return art.Trajectory(messages_and_choices=messages)


def test_a_config_is_that_of_a_step_with_cross_entropy():
    config = sft_config(max_grad_norm=0.5)
    assert (config.loss, config.learning_rate) == (CROSS_ENTROPY, 1e-4)
    assert config.max_grad_norm == 0.5
    assert loss_preset(CROSS_ENTROPY) is CROSS_ENTROPY


@pytest.mark.parametrize("option", [{"loss_fn": "cispo"}, {"learning_rat": 1.0}, {"packing": 2}])
def test_an_option_that_a_step_does_not_have_is_refused(option):
    with pytest.raises(art.ConfigError, match=next(iter(option))):
        sft_config(**option)


def test_a_conversation_is_one_sequence_whose_assistant_turns_are_trained():
    (sequence,) = sft_sequences(example("user", "assistant", "user", "assistant"), turns)
    assert sequence.token_ids == (0, 1, 2, 3)
    assert sequence.trainable == (False, True, False, True)
    assert all(math.isnan(sequence.logprobs[n]) for n in (1, 3))


def test_batches_have_their_sequences_and_count_what_is_trained():
    batches = [[example("user", "assistant"), example("user", "assistant")], [example("user")]]
    found, metrics = sft_batches(batches, turns)
    assert [len(batch) for batch in found] == [2]
    assert metrics == {
        "data/step_num_examples": 3,
        "data/step_num_sequences": 2,
        "data/step_trainer_tokens": 2,
    }


def test_nothing_to_train_on_is_a_warning(caplog):
    assert sft_batches([[example("user")]], turns)[0] == []
    assert "no example has a trained token" in caplog.text


def test_the_size_of_an_example_is_its_tokens_or_its_problem():
    def refused(_):
        raise art.ConfigError("it is too long")

    assert example_size(example("user", "assistant"), turns) == ExampleSize(tokens=2, trained=1)
    assert example_size(example("user"), turns).problem == "it has no assistant message to train on"
    assert example_size(example("user"), refused).problem == "it is too long"
