import math

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.base.images import data_url, image_digest
from art_core.rl.batch import training_batch


def choice(prompt, completion, finish_reason="stop"):
    return {
        "message": {"role": "assistant", "content": ""},
        "finish_reason": finish_reason,
        "prompt_token_ids": prompt,
        "token_ids": completion,
        "logprobs": {"content": [{"logprob": -1.0} for _ in completion]},
    }


FOREIGN = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


def attempt(reward, *choices, **more):
    return art.Trajectory(messages_and_choices=list(choices), reward=reward, **more)


def batch(*groups, **options):
    return training_batch([art.TrajectoryGroup(g) for g in groups], art.TrainConfig.of(**options))


def test_each_attempt_becomes_a_sequence_with_its_advantage_and_its_weight():
    made = batch([attempt(0.0, choice([1], [2])), attempt(1.0, choice([1], [3, 4]))])
    assert [s.token_ids for s in made.sequences] == [(1, 2), (1, 3, 4)]
    assert [s.advantage for s in made.sequences] == [-0.5, 0.5]
    assert [s.weight for s in made.sequences] == [1.0, 0.5]
    assert made.metrics == {
        "data/step_trainer_tokens": 3.0,
        "data/step_num_sequences": 2.0,
        "data/step_num_truncated": 0.0,
        "data/step_num_biased_choices": 0.0,
        "data/prefix_breaks": 0.0,
    }
    assert not made.empty


def test_the_metrics_are_keys_that_the_catalogue_knows():
    known = art.Plugins().taxonomy().specs
    assert batch([attempt(0.0, choice([1], [2]))]).metrics.keys() <= known.keys()


def test_advantages_follow_the_config():
    group = [attempt(0.0, choice([1], [2])), attempt(4.0, choice([1], [3]))]
    scaled = batch(group, scale_rewards=True, advantage_balance=0.25)
    assert [s.advantage for s in scaled.sequences] == [-0.75, 1.0]


def test_all_conversations_of_an_attempt_share_its_weight():
    aside = art.History(messages_and_choices=[choice([9], [8, 8])])
    main = [choice([1], [2]), choice([5], [6])]
    made = batch(
        [attempt(0.0, choice([1], [2])), attempt(1.0, *main, additional_histories=[aside])]
    )
    of_second = [s for s in made.sequences if s.advantage > 0]
    assert [s.token_ids for s in of_second] == [(1, 2), (5, 6), (9, 8, 8)]
    assert [s.weight * s.num_trainable for s in of_second] == [0.25, 0.25, 0.5]
    assert made.metrics["data/prefix_breaks"] == 1.0


def test_a_group_without_spread_is_left_out():
    flat = [attempt(1.0, choice([1], [2])), attempt(1.0, choice([1], [3]))]
    good = [attempt(0.0, choice([7], [2])), attempt(1.0, choice([7], [3]))]
    assert {s.token_ids[0] for s in batch(flat, good).sequences} == {7}


def test_a_step_without_spread_says_so_and_is_empty(caplog):
    made = batch([attempt(1.0, choice([1], [2]))] * 2, [attempt(0.5)])
    assert made.empty
    assert made.metrics["data/step_trainer_tokens"] == 0.0
    assert "nothing to train on: 2 of 2 groups are without spread in their rewards." in caplog.text
    assert batch().empty
    assert "nothing to train on: no groups were given." in caplog.text


def test_a_conversation_cut_off_by_the_token_limit_teaches_nothing_unless_asked(caplog):
    group = [
        attempt(0.0, choice([1], [2]), choice([1, 2], [3], "length")),
        attempt(1.0, choice([1], [4])),
    ]
    masked, kept = batch(group), batch(group, mask_truncated=False)
    assert [s.token_ids for s in masked.sequences] == [(1, 4)]
    assert [s.token_ids for s in kept.sequences] == [(1, 2, 3), (1, 4)]
    assert masked.metrics["data/step_num_truncated"] == 1.0
    assert kept.metrics["data/step_num_truncated"] == 1.0
    assert not caplog.text


def test_a_step_of_which_all_was_cut_off_is_said(caplog):
    group = [attempt(r, choice([1], [2], "length")) for r in (0.0, 1.0)]
    assert batch(group).empty
    assert "nothing to train on: 2 of 2 attempts were cut off at max_tokens (raise" in caplog.text
    assert "without spread" not in caplog.text


def test_truncation_is_no_reason_where_cut_off_attempts_are_trained(caplog):
    group = [attempt(1.0, choice([1], [2], "length"))] * 2
    assert batch(group, mask_truncated=False).empty
    assert "nothing to train on: 1 of 1 groups are without spread" in caplog.text
    assert "cut off" not in caplog.text


def test_the_reasons_count_everything_that_was_submitted(caplog):
    """Also attempts of groups whose rewards are all equal, and attempts that failed."""
    flat = [attempt(0.0, choice([1], [2], "length"), FOREIGN | {"finish_reason": "length"})] * 3
    aside = art.History(messages_and_choices=[choice([9], [8], "length")])
    other = [attempt(1.0, choice([1], [2]), additional_histories=[aside]), ValueError("no")]
    made = batch(flat, other)
    assert made.empty
    assert made.metrics["data/step_num_truncated"] == 4.0
    for reason in (
        "1 of 5 attempts failed",
        "4 of 5 attempts were cut off at max_tokens",
        "2 of 2 groups are without spread in their rewards",
        "3 of 5 conversations hold a choice without token ids.",
    ):
        assert reason in caplog.text
    assert "3 of 8 choices carry no engine token ids" in caplog.text


def test_flat_groups_without_any_tokens_say_so_and_do_not_end_the_run(caplog):
    assert batch([attempt(1.0, FOREIGN)] * 2).empty
    assert "2 of 2 choices carry no engine token ids" in caplog.text


def test_an_answer_of_no_tokens_trains_nothing():
    made = batch([attempt(0.0, choice([1], [])), attempt(1.0, choice([1], [2]))])
    assert [s.token_ids for s in made.sequences] == [(1, 2)]


def test_choices_without_engine_tokens_are_counted_and_said(caplog):
    made = batch([attempt(0.0, FOREIGN, choice([1], [2])), attempt(1.0, choice([1], [3]))])
    assert [s.token_ids for s in made.sequences] == [(1, 3)]
    assert "1 of 3 choices carry no engine token ids" in caplog.text
    assert "trained whole or not at all: 1 of 2 are left out" in caplog.text
    assert "model.openai_client()" in caplog.text and "model.recording(" in caplog.text


def test_a_step_of_which_every_conversation_lacks_tokens_somewhere_says_so(caplog):
    turns = [choice([1], [2]), FOREIGN]
    assert batch([attempt(r, *turns) for r in (0.0, 1.0)]).empty
    assert "2 of 4 choices carry no engine token ids" in caplog.text
    assert "2 of 2 are left out" in caplog.text
    assert "2 of 2 conversations hold a choice without token ids" in caplog.text


def test_a_step_in_which_no_choice_has_engine_tokens_is_an_error():
    with pytest.raises(ConfigError, match=r"none of the 2 choices.*model\.openai_client\(\)"):
        batch([attempt(0.0, FOREIGN), attempt(1.0, FOREIGN)])


def test_messages_in_the_place_of_choices_train_nothing_and_are_said(caplog):
    said = {"role": "assistant", "content": "yes"}
    assert batch([attempt(0.0, said), attempt(1.0, said)]).empty
    assert "hold messages, and no choice of the model (Rollouts must call" in caplog.text
    assert "without spread" not in caplog.text


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_stops_the_step_before_it_spoils_the_weights(reward):
    with pytest.raises(ConfigError, match="not finite"):
        batch([attempt(1.0, choice([1], [2])), attempt(reward, choice([1], [3])), attempt(0.0)])


def test_rewards_whose_advantages_would_spoil_the_weights_stop_the_step():
    group = [attempt(r, choice([1], [2])) for r in (-1e200, 1e200)]
    with pytest.raises(ConfigError, match=r"from -1e\+200 to 1e\+200 give .* 32-bit"):
        batch(group)
    made = batch(group, scale_rewards="group")
    assert [s.advantage for s in made.sequences] == pytest.approx([-1.0, 1.0])


def test_the_loss_says_how_much_the_tokens_of_an_attempt_count():
    groups = [attempt(0.0, choice([1], [2])), attempt(1.0, choice([1], [3, 4]))]
    assert [s.weight for s in batch(groups, loss_fn="dapo").sequences] == [1.0, 1.0]
    made = batch(groups, loss_fn="dr_grpo", normalization_length=10)
    assert [s.weight for s in made.sequences] == [0.1, 0.1]


def test_rewards_can_be_scaled_over_the_whole_step():
    groups = [[attempt(r, choice([i], [2])) for i, r in enumerate(two)] for two in ((0, 4), (2, 2))]
    made = batch(*groups, scale_rewards="batch", advantage_baseline="rloo")
    assert [s.advantage for s in made.sequences] == pytest.approx([-2 * 2**0.5, 2 * 2**0.5])


def test_choices_that_were_not_drawn_by_their_log_probs_are_counted_and_said(caplog):
    narrowed = {**choice([1], [2]), "sampling": {"top_p": 0.9}}
    made = batch([attempt(0.0, narrowed), attempt(1.0, choice([1], [3]))])
    assert made.metrics["data/step_num_biased_choices"] == 1.0
    assert "1 trained choices were drawn at a temperature or top_p other than 1" in caplog.text


def test_images_are_trained_where_the_backend_does():
    url = data_url("image/png", b"one")
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    seen = choice([1], [2]) | {"prompt_images": [image_digest(url)]}
    groups = [art.TrajectoryGroup([attempt(0.0, message, seen), attempt(1.0, message, seen)])]
    made = training_batch(groups, art.TrainConfig(), images=True)
    assert [s.images for s in made.sequences] == [(url,), (url,)]
    with pytest.raises(ConfigError, match="this model is trained on text"):
        training_batch(groups, art.TrainConfig())


def test_answers_under_a_grammar_are_trained_only_where_their_log_probs_can_be_computed():
    held = {**choice([1], [2]), "grammar": "start: /a/"}
    group = art.TrajectoryGroup([attempt(0.0, held), attempt(1.0, choice([1], [3]))])
    with pytest.raises(ConfigError, match="sampled under a grammar"):
        training_batch([group], art.TrainConfig())
    made = training_batch([group], art.TrainConfig(), grammars=True)
    assert [s.grammars for s in made.sequences] == [((1, 2, "start: /a/"),), ()]
