import math

import attrs
import pytest

import art_core as art
from art_core.errors import ConfigError


def test_the_defaults_are_those_that_the_reference_names():
    config = art.TrainConfig()
    assert (config.kl_penalty_coef, config.advantage_baseline) == (0.0, "group_mean")
    assert (config.packing, config.loss.truncated_importance_sampling) == (True, 2.0)
    assert (config.learning_rate, config.loss_fn, config.max_grad_norm) == (1e-5, "cispo", 1.0)
    assert (config.scale_rewards, config.advantage_balance) == (False, 0.0)
    assert config.mask_truncated and config.save_checkpoint


def test_options_are_taken_by_name():
    config = art.TrainConfig.of(learning_rate=0.5, scale_rewards=True)
    assert (config.learning_rate, config.scale_rewards) == (0.5, True)


def test_an_unknown_option_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no training option 'learning_rat'.*'learning_rate'"):
        art.TrainConfig.of(learning_rat=1e-5)


@pytest.mark.parametrize("name", ["learning_rate", "epsilon", "epsilon_high", "max_grad_norm"])
@pytest.mark.parametrize("odd", [0, -1.0, math.nan, math.inf, "1e-5", True])
def test_a_number_that_must_be_above_0_is_refused_by_its_name(name, odd):
    with pytest.raises(ConfigError, match=f"{name} must be a finite number above 0, got"):
        art.TrainConfig.of(**{name: odd})


@pytest.mark.parametrize("name", ["micro_batch_tokens", "logprob_calculation_chunk_size"])
@pytest.mark.parametrize("odd", [0, -1, 1.5, "8", True])
def test_a_count_that_is_none_is_refused_by_its_name(name, odd):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1, got"):
        art.TrainConfig.of(**{name: odd})


@pytest.mark.parametrize("name", ["micro_batch_tokens", "logprob_calculation_chunk_size"])
def test_a_count_is_taken_and_left_to_the_backend_when_it_is_not_given(name):
    assert getattr(art.TrainConfig.of(**{name: 512}), name) == 512
    assert getattr(art.TrainConfig(), name) is None


@pytest.mark.parametrize("odd", [1.1, -1.1, math.nan, "0", None, False])
def test_a_balance_beyond_1_is_refused(odd):
    with pytest.raises(ConfigError, match=r"advantage_balance must lie in \[-1, 1\], got"):
        art.TrainConfig.of(advantage_balance=odd)


@pytest.mark.parametrize(
    "name", ["mask_truncated", "save_checkpoint", "mask_prob_ratio", "packing"]
)
def test_a_switch_is_true_or_false(name):
    with pytest.raises(ConfigError, match=f"{name} must be True or False, got 'false'"):
        art.TrainConfig.of(**{name: "false"})


def test_an_unknown_loss_is_refused_before_anything_is_spent():
    with pytest.raises(ConfigError, match="no loss 'ppa'"):
        art.TrainConfig.of(loss_fn="ppa")


def test_clip_values_replace_those_of_the_preset():
    assert art.TrainConfig(loss_fn="ppo").loss.epsilon == 0.2
    loss = art.TrainConfig(loss_fn="ppo", epsilon=0.1, epsilon_high=0.3).loss
    assert (loss.name, loss.epsilon, loss.epsilon_high) == ("ppo", 0.1, 0.3)


def test_a_config_does_not_change():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        art.TrainConfig().learning_rate = 1.0
