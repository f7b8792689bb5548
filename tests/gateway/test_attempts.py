"""Attempts: keys, ends, timeouts and groups, without a server."""

from __future__ import annotations

import math

import attrs
import pytest

from art_core.base.errors import BudgetError, RolloutFailure
from art_core.base.spending import active_spending
from art_core.client.recorder import Recording
from art_core.endpoint.errors import RequestError
from art_core.gateway import attempts as module
from art_core.gateway.attempts import Attempts, Ending

WON, LOST = Ending(1.0, None, {}), Ending(0.0, None, {})


@attrs.define
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    def new_recording(trajectory):
        return Recording(trajectory=trajectory)

    return Attempts(timeout_s=10.0, limit=1000, new_recording=new_recording, clock=clock)


def accept(measured):
    """Every metric can be logged."""


def begin(attempts, count, scenario_id="s"):
    return [attempts.begin(scenario_id, {}) for _ in range(count)]


def end_all(attempts, begun, ending=WON):
    for each in begun:
        attempts.end(each.id, ending, accept)


def test_a_group_is_taken_when_all_that_began_side_by_side_are_over(attempts):
    slow, *fast = begin(attempts, 4)
    end_all(attempts, fast)
    assert attempts.take(2).rewards == [1.0, 1.0]
    assert attempts.take(2) is None
    attempts.end(slow.id, LOST, accept)
    assert attempts.take(2).rewards == [0.0, 1.0]


def test_attempts_at_different_scenarios_never_share_a_group(attempts):
    sea, sky = begin(attempts, 2, "sea"), begin(attempts, 2, "sky")
    end_all(attempts, [sea[0], *sky])
    assert attempts.take(2, "sea") is None
    group = attempts.take(2)
    assert group.metadata == {"scenario_id": "sky"}
    end_all(attempts, sea[1:])
    assert attempts.take(2, "sky") is None
    assert attempts.take(2, "sea").metadata == {"scenario_id": "sea"}


def test_an_attempt_that_does_not_end_in_time_is_a_failure_of_its_group(attempts, clock):
    ended, late = begin(attempts, 2)
    end_all(attempts, [ended], LOST)
    clock.now = 9.0
    assert attempts.seconds_left() == 1.0
    assert attempts.take(2) is None
    clock.now = 10.0
    group = attempts.take(2)
    assert [t.reward for t in group] == [0.0]
    assert [f.reason for f in group.failures] == ["timeout"]
    assert attempts.seconds_left() is None
    with pytest.raises(RequestError, match="is over \\(timed_out\\), and so is its key") as refused:
        attempts.recording_of(late.key)
    assert refused.value.status == 401
    with pytest.raises(RequestError, match="over \\(timed_out\\) with another end") as refused:
        attempts.end(late.id, WON, accept)
    assert refused.value.status == 409


def test_a_group_that_stays_small_is_taken_after_the_timeout(attempts, clock):
    end_all(attempts, begin(attempts, 2))
    clock.now = 5.0
    end_all(attempts, begin(attempts, 1))
    clock.now = 10.0
    assert attempts.take(8) is None
    assert attempts.seconds_left() == 5.0
    clock.now = 15.0
    assert len(attempts.take(8)) == 3


def test_the_same_end_again_changes_nothing_also_after_its_group_was_taken(attempts):
    begun = begin(attempts, 1)
    for _ in range(2):
        assert attempts.end(begun[0].id, WON, accept)["status"] == "ended"
    attempts.take(1)
    assert attempts.end(begun[0].id, WON, accept)["reward"] == 1.0
    for other in (LOST, Ending(None, "crashed", {}), Ending(1.0, None, {"turns": 2})):
        with pytest.raises(RequestError, match="over \\(ended\\) with another end"):
            attempts.end(begun[0].id, other, accept)


def test_a_failure_is_kept_apart_from_a_reward_of_zero(attempts):
    begun = begin(attempts, 3)
    attempts.end(begun[0].id, LOST, accept)
    attempts.end(begun[1].id, Ending(None, "token=sk-123456789012345678901234", {}), accept)
    attempts.end(begun[2].id, Ending(None, "", {}), accept)
    group = attempts.take(3)
    assert (group.rewards, [f.type for f in group.failures]) == ([0.0], ["AttemptFailed"] * 2)
    assert "sk-1234" not in str(group.failures[0])
    assert isinstance(group.failures[1], RolloutFailure)
    assert group.failures[1].message == "no reason was given"


def test_a_thousand_attempts_that_never_end_are_the_limit_and_end_by_timeout(attempts, clock):
    begun = begin(attempts, 1000)
    with pytest.raises(RequestError, match="limit \\(max_attempts\\)") as refused:
        attempts.begin("s", {})
    assert refused.value.status == 503
    clock.now = 10.0
    assert {each["status"] for each in attempts.listed()} == {"timed_out"}
    with pytest.raises(RequestError, match="limit"):
        attempts.begin("s", {})
    taken = [attempts.take(500) for _ in range(2)]
    assert [len(group.failures) for group in taken] == [500, 500]
    assert attempts.listed() == []
    assert attempts.facts(begun[0].id)["status"] == "timed_out"
    assert attempts.begin("s", {}).status == "open"


def test_past_attempts_are_forgotten_when_there_are_many(attempts, monkeypatch):
    monkeypatch.setattr(module, "MAX_PAST", 2)
    begun = begin(attempts, 3)
    end_all(attempts, begun)
    attempts.take(3)
    with pytest.raises(RequestError, match="no attempt has this key"):
        attempts.recording_of(begun[0].key)
    with pytest.raises(RequestError, match="no attempt") as refused:
        attempts.facts(begun[0].id)
    assert refused.value.status == 404
    with pytest.raises(RequestError, match="is over"):
        attempts.recording_of(begun[2].key)


def test_metrics_of_an_attempt_are_added_until_it_is_over(attempts):
    (one,) = begin(attempts, 1)
    attempts.measure(one.id, {"turns": 1, "cost": 2.5}, accept)
    attempts.measure(one.id, {"turns": 2}, accept)
    attempts.end(one.id, Ending(0.5, None, {"solved": True}), accept)
    with pytest.raises(RequestError, match="is over \\(ended\\)") as refused:
        attempts.measure(one.id, {"turns": 3}, accept)
    assert refused.value.status == 409
    (trajectory,) = attempts.take(1)
    assert trajectory.metrics.pop("duration") >= 0
    assert trajectory.metrics == {"turns": 2, "cost": 2.5, "solved": True}


def test_refused_metrics_do_not_end_an_attempt(attempts):
    (one,) = begin(attempts, 1)

    def refuse(measured):
        raise RequestError(400, f"no {', '.join(measured.metrics)}")

    with pytest.raises(RequestError, match="no bad"):
        attempts.end(one.id, Ending(1.0, None, {"bad": math.pi}), refuse)
    assert attempts.facts(one.id)["status"] == "open"
    assert attempts.facts(one.id)["metrics"] == {}


def test_who_waits_is_called_when_an_attempt_begins_or_ends(attempts):
    calls = []
    with attempts.calling(lambda: calls.append(1)):
        begun = begin(attempts, 2)
        attempts.end(begun[0].id, WON, accept)
    attempts.end(begun[1].id, WON, accept)
    assert calls == [1, 1, 1]


def test_an_attempt_whose_budget_refused_a_call_is_a_failure_whatever_it_reports(attempts):
    [begun] = begin(attempts, 1)
    spending = begun.recording.payers[active_spending]
    spending.exceeded = BudgetError("too much")
    facts = attempts.end(begun.id, WON, accept)
    assert (facts["status"], facts["failure"]) == ("failed", "BudgetError: too much")
    [failure] = attempts.take(1).failures
    assert failure.reason == "budget"
