import math

import pytest

from art_core.errors import ConfigError
from art_core.rl.presets import PRESETS, loss_preset


def test_a_preset_is_found_by_its_name():
    assert all(loss_preset(name).name == name for name in PRESETS)


def test_cispo_weighs_by_a_ratio_between_0_and_5():
    cispo = loss_preset("cispo")
    assert cispo.surrogate == "weight"
    assert (1 - cispo.epsilon, 1 + cispo.epsilon_high) == (0.0, 5.0)


def test_ppo_clips_the_ratio_between_0_8_and_1_28():
    ppo = loss_preset("ppo")
    assert ppo.surrogate == "ratio"
    assert (1 - ppo.epsilon, 1 + ppo.epsilon_high) == pytest.approx((0.8, 1.28))


def test_every_preset_names_its_source():
    assert all("arXiv" in preset.source for preset in PRESETS.values())


def test_an_unknown_loss_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no loss 'cipso'; known: .*Did you mean 'cispo'\?"):
        loss_preset("cipso")


@pytest.mark.parametrize("odd", [None, 3, ["ppo"], math.exp])
def test_a_loss_that_is_no_name_is_refused(odd):
    with pytest.raises(ConfigError, match="no loss"):
        loss_preset(odd)
