import math

import attrs
import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.rl.config import check_options, count


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


def test_a_plugins_loss_is_taken_by_name_beside_presets_and_import_paths():
    offered = {"mine": art.LossSpec(name="mine", create=lambda: None)}

    def named(name):
        return art.TrainConfig.of(offered, loss_fn=name).loss

    assert named("mine").spec is offered["mine"]
    assert named("ppo").surrogate == "ratio"
    assert named("math:sqrt").name == "math:sqrt"
    with pytest.raises(ConfigError, match="no loss 'min'.*mine.*Did you mean 'mine'"):
        named("min")


def test_clip_values_replace_those_of_the_preset():
    assert art.TrainConfig(loss_fn="ppo").loss.epsilon == 0.2
    loss = art.TrainConfig(loss_fn="ppo", epsilon=0.1, epsilon_high=0.3).loss
    assert (loss.name, loss.epsilon, loss.epsilon_high) == ("ppo", 0.1, 0.3)


def test_a_config_does_not_change():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        art.TrainConfig().learning_rate = 1.0


@pytest.mark.parametrize(
    ("loss_fn", "option", "value", "has"),
    [
        ("ppo", "kimi_k2_tau", 0.1, "epsilon, epsilon_high, importance_sampling_level"),
        ("importance_sampling", "epsilon", 0.2, "importance_sampling_level, kimi_k2_tau"),
        ("importance_sampling", "mask_prob_ratio", True, "kimi_k2_tau"),
        ("gspo", "importance_sampling_level", "token", "epsilon, epsilon_high, mask_prob_ratio"),
        ("my_module:my_loss", "epsilon_high", 0.3, "importance_sampling_level"),
    ],
)
def test_a_parameter_that_the_loss_does_not_have_is_told_with_those_that_it_has(
    loss_fn, option, value, has
):
    told = f"loss '{loss_fn}' has no parameter '{option}'; it has: .*{has}"
    with pytest.raises(ConfigError, match=told):
        art.TrainConfig(loss_fn=loss_fn, **{option: value})


def test_the_parameters_of_a_loss_replace_its_own():
    loss = art.TrainConfig(
        loss_fn="cispo",
        importance_sampling_level="average",
        kimi_k2_tau=0.5,
        mask_prob_ratio=True,
        mask_sequence_ratio=1.5,
        max_negative_advantage_importance_sampling_weight=3.0,
        normalization="constant",
        normalization_length=64,
        truncated_importance_sampling=4.0,
    ).loss
    assert (loss.importance_sampling_level, loss.kimi_k2_tau) == ("average", 0.5)
    assert (loss.mask_prob_ratio, loss.mask_sequence_ratio) == (True, 1.5)
    assert loss.max_negative_advantage_importance_sampling_weight == 3.0
    assert (loss.normalization, loss.normalization_length) == ("constant", 64)
    assert (loss.truncated_importance_sampling, loss.ratio_cap) == (4.0, 4.0)
    assert loss.options == art.TrainConfig().loss.options


def test_a_cap_can_be_taken_off():
    loss = art.TrainConfig(loss_fn="ppo", truncated_importance_sampling=math.inf).loss
    assert (loss.truncated_importance_sampling, loss.ratio_cap) == (math.inf, math.inf)
    with pytest.raises(ConfigError, match=r"must be a number above 0 \(math.inf for none\), got 0"):
        art.TrainConfig(truncated_importance_sampling=0)


def test_a_length_that_nothing_reads_is_refused():
    assert art.TrainConfig(loss_fn="dr_grpo", normalization_length=8).loss.normalization_length == 8
    with pytest.raises(ConfigError, match="read only by normalization='constant'"):
        art.TrainConfig(normalization_length=8)


@pytest.mark.parametrize(
    ("option", "odd", "told"),
    [
        ("importance_sampling_level", "sequenze", r"no importance_sampling_level .*'sequence'\?"),
        ("normalization", 3, "no normalization '3'; known: constant, sequence, token, trajectory"),
        (
            "advantage_baseline",
            "loo",
            "no advantage_baseline 'loo'; known: group_mean, leave",
        ),
        ("scale_rewards", "batches", "True or False, or 'group', 'batch', 'none', got 'batches'"),
        ("mask_sequence_ratio", 1.0, "must be a finite number above 1, got 1.0"),
        ("kl_penalty_coef", -0.1, "must be a finite number of at least 0, got -0.1"),
        ("kl_penalty_coef", float("inf"), "must be a finite number of at least 0, got inf"),
        ("kl_penalty_reference_step", -1, "must be a step, 0 or more, got -1"),
        ("grad_accumulation_sequences", 0, "must be a whole number of at least 1, got 0"),
        ("packed_sequence_length", 1.5, "must be a whole number of at least 1, got 1.5"),
        ("packing", 1, "packing must be True or False, got 1"),
        ("gae_gamma", 1.5, "gae_gamma must be a number from 0 to 1, got 1.5"),
        ("value_learning_rate", 0, "value_learning_rate must be a finite number above 0, got 0"),
        ("discount", 1.5, "discount must be a number from 0 to 1, got 1.5"),
        ("reward_weights", ["a"], "must map the names of metrics to finite weights, not all of"),
        ("reward_weights", {}, "must map the names of metrics to finite weights, not all of"),
        ("reward_weights", {"a": 0.0}, "must map the names of metrics to finite weights"),
        ("reward_weights", {"a": float("nan")}, "must map the names of metrics to finite"),
        ("reward_scales", "group", "must map names of rewards to their scales, got 'group'"),
        ("advantage_fn", "ranks", "no advantages 'ranks': no plugin offers them. A function of"),
        ("advantage_fn", 3, "no advantages 3: no plugin offers them"),
        ("advantage_fn", "a b:c", 'a function for advantages is named "module:function", got'),
    ],
)
def test_an_odd_value_is_refused_by_its_name(option, odd, told):
    with pytest.raises(ConfigError, match=told):
        art.TrainConfig.of(**{option: odd})


@pytest.mark.parametrize("value", [True, False, "group", "batch", "none"])
def test_rewards_are_scaled_by_name(value):
    assert art.TrainConfig(scale_rewards=value).scale_rewards == value


def test_the_reference_of_the_penalty_is_a_step():
    config = art.TrainConfig(kl_penalty_coef=0.1, kl_penalty_reference_step=0)
    assert (config.kl_penalty_coef, config.kl_penalty_reference_step) == (0.1, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"packing": False, "packed_sequence_length": 4096}, "has no effect with packing=False"),
        ({"kl_penalty_reference_step": 1}, "has no effect while kl_penalty_coef is 0"),
        ({"reward_scales": {"a": "none"}}, "has 'a', which reward_weights does not have"),
        ({"gae_lambda": 0.9}, "gae_lambda is of the critic, which advantage_baseline='value'"),
        ({"advantage_baseline": "value", "discount": 0.5}, "discount has no effect with advan"),
        ({"advantage_baseline": "value", "reward_weights": {"a": 1}}, "reward_weights has no"),
        ({"advantage_fn": "a:b", "discount": 0.5}, "discount has no effect with advantage_fn"),
        ({"advantage_fn": "a:b", "reward_weights": {"c": 1}}, "reward_weights has no effect"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        art.TrainConfig(**options)


def test_a_backends_options_are_checked_as_a_steps_are():
    check_options(count, lora_rank=16, max_batch_size=1)
    with pytest.raises(ConfigError, match="max_batch_size must be a whole number .*, got 0"):
        check_options(count, lora_rank=16, max_batch_size=0)


@pytest.mark.parametrize("name", ["weight_decay", "entropy_coef"])
@pytest.mark.parametrize("odd", [-0.1, math.nan, math.inf, "0.1", True])
def test_a_coefficient_is_at_least_0(name, odd):
    with pytest.raises(ConfigError, match=f"{name} must be a finite number of at least 0, got"):
        art.TrainConfig.of(**{name: odd})


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no optimizer 'muan'; known: .*Did you mean 'muon'"):
        art.TrainConfig(optimizer="muan")


def test_a_target_without_a_bonus_is_refused():
    with pytest.raises(ConfigError, match="entropy_target has no effect while entropy_coef is 0"):
        art.TrainConfig(entropy_target=1.0)
    assert art.TrainConfig(entropy_coef=0.1, entropy_target=1.0).entropy_target == 1.0
