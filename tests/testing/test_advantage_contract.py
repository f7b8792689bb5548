"""The settings of the contract of advantages."""

import pytest

import art_core as art
from art_core.testing.advantages import AdvantageContract


def offered(**functions):
    return {n: art.AdvantageSpec(name=n, create=lambda f=f: f) for n, f in functions.items()}


def constant(trajectories):
    return [1.0] * len(trajectories)


SPEC = offered(constant=constant)["constant"]


def test_one_of_several_is_tried_by_its_name():
    contract, two = AdvantageContract(), offered(a=constant, b=constant)
    spec_of = AdvantageContract.spec.__wrapped__
    assert spec_of(contract, offered(a=constant)).name == "a"
    with pytest.raises(pytest.fail.Exception, match="give the setting `name`; .* offers: a, b"):
        spec_of(contract, two)
    contract.name = "b"
    assert spec_of(contract, two).name == "b"
    contract.name = "c"
    with pytest.raises(pytest.fail.Exception, match="offers: a, b"):
        spec_of(contract, two)


def test_what_is_stated_is_not_checked():
    contract = AdvantageContract()
    flat = contract.test_attempts_with_equal_rewards_have_no_advantage
    better = contract.test_a_better_attempt_has_no_lower_advantage
    for test in (flat, better):
        with pytest.raises(AssertionError):
            test(SPEC)
    contract.teaches_without_spread = contract.ignores_rewards = True
    with pytest.raises(pytest.skip.Exception, match="teaches_without_spread is stated"):
        flat(SPEC)
    with pytest.raises(pytest.skip.Exception, match="ignores_rewards is stated"):
        better(SPEC)
