import math

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.rl.config import LOSS_OPTIONS
from art_core.rl.losses import PRESETS, loss_preset, spec_of_path


def test_a_preset_is_found_by_its_name():
    assert all(loss_preset(name).name == name for name in PRESETS)
    others = ["ppo", "gspo", "dr_grpo", "dapo", "importance_sampling", "distill"]
    assert list(PRESETS) == ["cispo", *others]


@pytest.mark.parametrize(
    ("name", "surrogate", "low", "high", "level", "normalization"),
    [
        ("cispo", "weight", 0.0, 5.0, "token", "trajectory"),
        ("ppo", "ratio", 0.8, 1.28, "token", "trajectory"),
        ("gspo", "ratio", 0.9997, 1.0004, "sequence", "sequence"),
        ("dr_grpo", "ratio", 0.8, 1.2, "token", "constant"),
        ("dapo", "ratio", 0.8, 1.28, "token", "token"),
        ("importance_sampling", "weight", -math.inf, math.inf, "token", "trajectory"),
    ],
)
def test_a_preset_has_the_values_of_its_paper(name, surrogate, low, high, level, normalization):
    preset = loss_preset(name)
    assert preset.surrogate == surrogate
    assert (1 - preset.epsilon, 1 + preset.epsilon_high) == pytest.approx((low, high))
    assert (preset.importance_sampling_level, preset.normalization) == (level, normalization)


def test_every_preset_names_its_source():
    assert all("arXiv" in preset.source for preset in PRESETS.values())


def test_what_a_loss_has_is_what_a_step_can_be_given():
    assert {option for preset in PRESETS.values() for option in preset.options} == set(LOSS_OPTIONS)


def test_an_unknown_loss_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no loss 'cipso'; known: .*Did you mean 'cispo'\?"):
        loss_preset("cipso")


@pytest.mark.parametrize("odd", [None, 3, ["ppo"], math.exp])
def test_a_loss_that_is_no_name_is_refused(odd):
    with pytest.raises(ConfigError, match="no loss"):
        loss_preset(odd)


def test_a_function_is_named_by_its_import_path_and_imported_when_it_is_needed(
    tmp_path, monkeypatch
):
    preset = loss_preset("my_losses_of_today:gentle")
    assert (preset.name, preset.surrogate) == ("my_losses_of_today:gentle", "function")
    with pytest.raises(
        ConfigError, match=r"'my_losses_of_today:gentle' can't be imported.*PYTHONP"
    ):
        preset.spec.create()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_losses_of_today.py").write_text("def gentle(tokens):\n    return tokens\n")
    assert preset.spec.create()(3) == 3
    with pytest.raises(ConfigError, match="can't be imported: module .* has no attribute 'rough'"):
        spec_of_path("my_losses_of_today:rough").create()


@pytest.mark.parametrize("odd", ["a:", ":b", "a b:c", "a:b.c", "a/b:c"])
def test_a_path_that_is_none_is_refused_at_once(odd):
    with pytest.raises(ConfigError, match='named "module:function", got'):
        loss_preset(odd)


def test_a_loss_can_be_given_as_a_value():
    spec = art.LossSpec(name="mine", create=lambda: max)
    preset = loss_preset(spec)
    assert (preset.name, preset.spec, preset.source) == ("mine", spec, "a function of your own")
