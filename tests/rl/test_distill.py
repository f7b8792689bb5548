import math

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.data.trajectory import tokens_of
from art_core.model.teacher import is_scored_by, set_scores, token_texts
from art_core.rl.batch import training_batch
from art_core.rl.distill import distilled, teacher_kl
from art_core.rl.losses import PRESETS
from art_core.rl.sequences import TokenSequence, merge_turns


def choice(prompt, sampled, logprob=-1.0, **more):
    return {
        "message": {"role": "assistant", "content": "x"},
        "finish_reason": "stop",
        "prompt_token_ids": prompt,
        "token_ids": sampled,
        "logprobs": {"content": [{"token": chr(t), "logprob": logprob} for t in sampled]},
        **more,
    }


def scored(prompt, sampled, teacher, **more):
    made = choice(prompt, sampled, **more)
    set_scores(made, "teacher", teacher)
    return made


def attempts(*choices, rewards=None):
    rewards = rewards or [0.0] * len(choices)
    return art.TrajectoryGroup(
        art.Trajectory(messages_and_choices=[{"role": "user", "content": "q"}, c], reward=r)
        for c, r in zip(choices, rewards, strict=True)
    )


SEQUENCE = TokenSequence(
    token_ids=(1, 2, 3),
    trainable=(False, True, True),
    logprobs=(0.0, -1.0, -2.0),
    advantage=0.5,
    teacher_logprobs=(0.0, -0.25, -4.0),
)


def test_advantages_gain_the_log_ratio_of_teacher_and_policy():
    found = distilled(SEQUENCE, 2.0)
    # the own 0.5, and twice log(teacher / policy): 0.75 and -2
    assert found.token_advantages == (0.0, 2.0, -3.5)
    assert found.advantage == -0.75
    assert teacher_kl([SEQUENCE]) == pytest.approx((-0.75 + 2.0) / 2)


@pytest.mark.parametrize(
    ("policy", "teacher", "gain"),
    [(-math.inf, -1.0, 0.0), (-1.0, -math.inf, -20.0), (-1.0, -9999.0, -20.0), (-1.0, math.nan, 0)],
)
def test_log_probs_that_are_not_finite_give_finite_advantages(policy, teacher, gain):
    odd = attrs.evolve(
        SEQUENCE, logprobs=(0.0, policy, -2.0), teacher_logprobs=(0.0, teacher, -2.0)
    )
    assert distilled(odd, 1.0).token_advantages == (0.0, 0.5 + gain, 0.5)


def test_without_scores_there_is_an_error_and_no_kl():
    with pytest.raises(ConfigError, match="needs a teacher's log-probs"):
        distilled(attrs.evolve(SEQUENCE, teacher_logprobs=None), 1.0)
    assert teacher_kl([]) == 0.0


def test_scores_stay_with_their_tokens_when_turns_are_merged():
    turns = [
        tokens_of(scored([1, 2], [3, 4], [-0.1, -0.2])),
        tokens_of(scored([1, 2, 3, 4, 5], [6], [-0.3])),
        tokens_of(choice([9], [9])),
    ]
    merged = merge_turns(turns).sequences
    assert merged[0].teacher_logprobs == (0.0, 0.0, -0.1, -0.2, 0.0, -0.3)
    assert merged[1].teacher_logprobs is None
    half = [tokens_of(choice([1, 2], [3, 4])), turns[1]]
    assert merge_turns(half).sequences[0].teacher_logprobs is None


def test_the_loss_distill_trains_groups_without_spread_and_ignores_rewards():
    group = attempts(
        scored([1], [2], [-0.5]), scored([1], [3, 3], [-2.0, -1.0]), rewards=[1.0, 0.0]
    )
    flat = attempts(scored([1], [2], [-0.5]))
    batch = training_batch([group, flat], art.TrainConfig(loss_fn="distill"))
    assert [s.token_advantages for s in batch.sequences] == [(0, 0.5), (0, -1.0, 0.0), (0, 0.5)]
    assert [s.weight for s in batch.sequences] == [1.0, 1.0, 1.0]
    assert batch.metrics["loss/teacher_kl"] == 0.0


def test_another_loss_adds_the_teacher_to_the_reward():
    group = attempts(scored([1], [2], [-0.5]), scored([1], [3], [-2.0]), rewards=[1.0, 0.0])
    batch = training_batch([group], art.TrainConfig(distill_coef=0.5))
    assert [s.token_advantages for s in batch.sequences] == [(0, 0.5 + 0.25), (0, -0.5 - 0.5)]
    plain = training_batch([group], art.TrainConfig())
    assert [s.token_advantages for s in plain.sequences] == [None, None]
    assert "loss/teacher_kl" not in plain.metrics


def test_beside_a_critic_the_sequence_has_the_teachers_advantages_and_the_rewards():
    group = attempts(scored([1], [2, 4], [-0.5, -1.5]), rewards=[1.0])
    config = art.TrainConfig(loss_fn="ppo", advantage_baseline="value", distill_coef=0.5)
    (sequence,) = training_batch([group], config, critic=True).sequences
    assert sequence.token_advantages == (0.0, 0.25, -0.25)  # the policy's log-probs are -1
    assert sequence.rewards == (0.0, 0.0, 1.0)


def test_a_loss_without_rewards_and_a_critic_are_refused_together():
    with pytest.raises(ConfigError, match="'distill' reads no rewards.*loss_fn='ppo' with distill"):
        art.TrainConfig(advantage_baseline="value", loss_fn="distill")


def test_groups_that_no_teacher_scored_are_refused():
    for options in ({"loss_fn": "distill"}, {"distill_coef": 1.0}):
        with pytest.raises(ConfigError, match="give|Give model.train"):
            training_batch([attempts(choice([1], [2]))], art.TrainConfig(**options))


def test_a_step_without_any_attempt_has_no_kl():
    batch = training_batch([], art.TrainConfig(loss_fn="distill"))
    assert batch.empty
    assert "loss/teacher_kl" not in batch.metrics


def test_the_preset_states_its_source_and_every_loss_takes_a_teacher():
    assert "2306.13649" in PRESETS["distill"].source
    assert art.TrainConfig(loss_fn="distill").loss.distill_coef == 1.0
    assert art.TrainConfig(loss_fn="distill", distill_coef=0.1).loss.distill_coef == 0.1
    assert {name for name, p in PRESETS.items() if "distill_coef" not in p.options} == set()


def test_scores_are_kept_on_a_choice_in_a_form_that_json_holds():
    made = scored([1], [2, 3], [-math.inf, -0.5])
    assert made["teacher_logprobs"] == [-9999.0, -0.5]
    assert is_scored_by(made, "teacher")
    assert not is_scored_by(made, "another")
    assert not is_scored_by(choice([1], [2]), "teacher")
    assert token_texts(made) == ["\x02", "\x03"]
    assert token_texts({"message": {}, "finish_reason": None}) == []
    made["token_ids"], made["logprobs"]["content"] = [2], made["logprobs"]["content"][:1]
    assert tokens_of(made).teacher_logprobs is None, "scores of other tokens"


def test_scores_are_kept_on_a_choice_of_openai_too():
    from openai.types.chat.chat_completion import Choice

    made = Choice.construct(index=0, **choice([1], [2]))
    set_scores(made, "teacher", [-0.5])
    assert made.model_dump(mode="json")["teacher_logprobs"] == [-0.5]
    assert is_scored_by(made, "teacher")
