"""A plan that is forecast from pilots, with numbers by hand."""

import attrs
import pytest

from art_core.forecast.interval import Interval
from art_core.forecast.pilot import (
    DeviceTime,
    Offer,
    PilotAttempt,
    Pilots,
    PlannedRun,
    cheapest,
    hosted_usd,
    others_usd,
    planned_lines,
)
from art_core.metrics.receipt import TokenRates

ATTEMPT = PilotAttempt(prompt=99, sampled=100, trained=200, seconds=1.0)
PILOTS = Pilots(
    attempts=(ATTEMPT, ATTEMPT),
    failures=2,
    usd={"train/llm_judge": 2.0, "train/host": 1.0},
    own=frozenset({"train/host"}),
    startup_s=100.0,
    wall_s=30.0,
    training_s=10.0,
    stored=400.0,
)
ON_DEVICE = attrs.evolve(PILOTS, device=DeviceTime("gpu", 1.4, 0.01))
PLAN = PlannedRun(steps=5, scenarios=2, group=4)
EVALUATED = attrs.evolve(PLAN, evaluations=2, attempts_per_evaluation=20)
RATES = TokenRates(input_per_million=1e6, output_per_million=2e6, train_per_million=3e6)


def median(lines, name):
    return next(line.coming.median for line in lines if line.name == name)


def test_each_attempt_costs_what_a_pilot_did():
    lines = planned_lines(PILOTS, PLAN)
    # 40 attempts: 4 pilots cost 2 dollars for judges and 1 at the host; failed ones count
    assert median(lines, "train/llm_judge") == pytest.approx(20.0)
    assert median(lines, "train/host") == pytest.approx(10.0)
    assert median(lines, "all") == pytest.approx(30.0)
    assert median(lines, "prompt tokens") == pytest.approx(99 * 40)
    assert median(lines, "tokens trained") == pytest.approx(200 * 40)
    assert median(lines, "trajectories") == pytest.approx(4000.0)
    assert lines[0].name == "all"
    assert lines[0].spent == 3.0


def test_attempts_of_evaluations_are_not_trained():
    lines = planned_lines(PILOTS, EVALUATED)
    assert median(lines, "train/llm_judge") == pytest.approx(40.0)
    assert median(lines, "prompt tokens") == pytest.approx(99 * 80)
    assert median(lines, "tokens trained") == pytest.approx(200 * 40)


def test_device_time_lies_between_perfect_sharing_and_the_pace_of_the_pilots():
    lines = {line.name: line.coming for line in planned_lines(ON_DEVICE, EVALUATED)}
    # 100 s to start; at best 5 * (30 + 10) and 2 * 30, at worst twice and five times as long
    fast, slow = 100 + 200 + 60, 100 + 400 + 300
    assert lines["gpu"].low90 == pytest.approx(fast * 0.01)
    assert lines["gpu"].high90 == pytest.approx(slow * 0.01)
    assert lines["gpu"].median == pytest.approx((fast * slow) ** 0.5 * 0.01)
    assert lines["wall clock"].high90 == pytest.approx(slow / 3600)
    assert lines["all"].low90 == pytest.approx(fast * 0.01 + 40 + 20)
    # fewer attempts than pilots take less time than they
    small = attrs.evolve(PLAN, scenarios=1, group=2)
    few = {line.name: line.coming for line in planned_lines(ON_DEVICE, small)}
    assert few["gpu"].low90 == few["gpu"].high90 == pytest.approx((100 + 5 * 20) * 0.01)


def test_without_priced_costs_there_are_no_dollars():
    lines = planned_lines(attrs.evolve(PILOTS, usd={}), PLAN)
    assert {line.unit for line in lines} == {"token", "hour", "byte"}


def test_attempts_of_different_lengths_make_an_interval():
    other = attrs.evolve(ATTEMPT, sampled=400)
    pilots = attrs.evolve(PILOTS, attempts=(ATTEMPT, other, ATTEMPT, other))
    lines = planned_lines(pilots, PLAN)
    line = next(line for line in lines if line.name == "train/llm_judge")
    assert line.coming.low90 < line.coming.low50 < line.coming.high50 < line.coming.high90
    assert line.growth is None


def test_one_pilot_gives_no_interval():
    lines = planned_lines(attrs.evolve(ON_DEVICE, attempts=(ATTEMPT,), failures=0), PLAN)
    assert [line.coming for line in lines] == [None] * len(lines)


def test_a_hosted_service_bills_prompts_answers_and_training():
    found = hosted_usd(PILOTS, PLAN, RATES, others=others_usd(PILOTS, PLAN))
    # 40 * (99 * 1 + 100 * 2 + 200 * 3), and judges for 20
    assert found.median == pytest.approx(40 * 899 + 20.0)
    half = hosted_usd(PILOTS, EVALUATED, RATES)
    assert half.median == pytest.approx(80 * 299 + 40 * 600)
    assert hosted_usd(PILOTS, PLAN, attrs.evolve(RATES, train_per_million=None)) is None
    assert hosted_usd(attrs.evolve(PILOTS, attempts=(ATTEMPT,)), PLAN, RATES) is None


def test_the_cheapest_is_among_offers_of_the_same_model_with_a_price():
    def offer(where, usd, same=True):
        interval = None if usd is None else Interval(*(usd,) * 6)
        return Offer(where=where, model="m", usd=interval, assumes="", same=same)

    found = [offer("a", 3.0), offer("b", 2.0), offer("c", 1.0, same=False), offer("d", None)]
    assert cheapest(found) == found[1]
    assert cheapest(found[2:]) is None
