"""Rewards for tool calls and code, and rewards of several parts."""

import asyncio

import numpy as np
import pytest

import art_core as art
from art_core import rewards
from art_core.metrics.summarize import summarize


def called(name, arguments):
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return art.Trajectory(messages_and_choices=[message])


def test_tool_called():
    attempt = called("search", '{"query": "sky", "limit": 3}')
    assert rewards.tool_called(attempt, "search") == 1
    assert rewards.tool_called(attempt, "find") == 0
    assert rewards.tool_called(attempt, "search", {"query": "sky"}) == 1
    assert rewards.tool_called(attempt, "search", {"query": "sea"}) == 0
    assert rewards.tool_called(attempt, "search", {"query": "sky"}, exactly=True) == 0
    assert rewards.tool_called(attempt, "search", {"limit": 3, "query": "sky"}, exactly=True) == 1
    other = art.Trajectory(
        additional_histories=[art.History(messages_and_choices=attempt.messages_and_choices)]
    )
    assert rewards.tool_called(other, "search", {"limit": 3}) == 1


@pytest.mark.parametrize("arguments", ["{", "[1]"])
def test_arguments_that_are_no_object_count_as_a_call_only(arguments):
    attempt = called("search", arguments)
    assert rewards.tool_called(attempt, "search") == 1
    assert rewards.tool_called(attempt, "search", {"query": "sky"}) == 0
    assert rewards.tool_called(attempt, "search", exactly=True) == 0


def test_arguments_as_an_object_and_none():
    assert rewards.tool_called(called("go", {"a": 1}), "go", {"a": 1}) == 1
    assert rewards.tool_called(called("go", None), "go", {}, exactly=True) == 1


CODE = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nGood?"


async def test_code_gets_the_share_of_tests_that_it_passes():
    tests = ["assert add(1, 2) == 3", "assert add(1, 1) == 3"]
    assert await rewards.passes_tests(CODE, tests) == 0.5
    assert await rewards.passes_tests("def add(a, b): return a + b", tests[0]) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def add(a, b): return",
        "no python",
        "x = ' ' * (1 << 32)",
        "import builtins; builtins.print = lambda *a, **k: None",
    ],
)
async def test_code_that_ends_early_fails_or_breaks_does_not_pass(code):
    assert await rewards.passes_tests(code, "assert add(1, 2) == 3") == 0


async def test_code_that_hangs_is_ended_with_what_it_started(tmp_path):
    code = "import subprocess\nsubprocess.Popen(['sleep', '300'])\nwhile True: pass"
    assert await rewards.passes_tests(code, "pass", timeout=0.5) == 0


async def test_code_does_not_see_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    test = "import os; assert 'SECRET_KEY' not in os.environ"
    assert await rewards.passes_tests("", test) == 1


async def test_code_runs_in_a_sandbox_that_is_given():
    asked = []

    async def sandbox(code, test, timeout):
        asked.append((code, test, timeout))
        return "1" in test

    tests = ["test 1", "test 2"]
    assert await rewards.passes_tests("code", tests, timeout=3, sandbox=sandbox) == 0.5
    assert asked == [("code", "test 1", 3), ("code", "test 2", 3)]


async def test_a_sandbox_that_fails_is_no_wrong_answer():
    async def sandbox(code, test, timeout):
        raise ConnectionError("down")

    with pytest.raises(art.RewardError, match=r"the sandbox failed \(ConnectionError: down\)"):
        await rewards.passes_tests("code", "test", sandbox=sandbox)


async def test_a_test_that_cannot_be_run_is_no_wrong_answer(monkeypatch):
    monkeypatch.setattr("art_core.rewards.code.sys.executable", "/no/such/python")
    with pytest.raises(art.RewardError, match="a test could not be run"):
        await rewards.passes_tests("code", "test")


async def test_code_needs_tests_and_limits():
    with pytest.raises(art.ConfigError, match="needs a test, and limits above 0"):
        await rewards.passes_tests("code", [])


async def test_parts_are_weighted_and_become_metrics():
    attempt = art.Trajectory()

    async def judged(trajectory):
        assert trajectory is attempt
        return np.float32(0.5)

    async def awaited():
        return 0.25

    parts = {"right": True, "short": -1.0, "style": judged, "half": awaited(), "sync": lambda _: 2}
    value = await art.reward(attempt, parts, weights={"short": 0.5, "sync": 0})
    assert value == attempt.reward == 1 - 0.5 + 0.5 + 0.25
    assert attempt.metrics == {"right": 1, "short": -1, "style": 0.5, "half": 0.25, "sync": 2}
    weights = {"right": 1, "short": 0.5, "style": 1, "half": 1, "sync": 0}
    assert attempt.metadata == {"reward_weights": weights}


async def test_the_row_has_the_spread_of_each_part_that_counts_times_its_weight():
    attempts = [art.Trajectory(), art.Trajectory()]
    for attempt, right in zip(attempts, (0.0, 1.0), strict=True):
        parts = {"right": right, "short": -right, "noted": right}
        await art.reward(attempt, parts, weights={"short": 0.5, "noted": 0})
    taxonomy = art.Plugins().taxonomy()
    row = summarize([art.TrajectoryGroup(attempts), art.TrajectoryGroup([])], "train", taxonomy)
    spreads = {key: value for key, value in row.items() if "part_std_dev" in key}
    assert spreads == {"reward/part_std_dev/right": 0.5, "reward/part_std_dev/short": 0.25}
    attempts[1].metadata.clear()
    row = summarize([art.TrajectoryGroup(attempts)], "train", taxonomy)
    assert not any("part_std_dev" in key for key in row)


@pytest.mark.parametrize("value", [float("nan"), {"a": 1}, None, "good"])
async def test_a_part_that_is_no_number_is_an_error(value):
    attempt = art.Trajectory(reward=3.0)
    with pytest.raises(art.RewardError, match="the reward 'x' gave"):
        await art.reward(attempt, {"x": value})
    assert (attempt.reward, attempt.metrics) == (3.0, {})


async def test_a_part_that_raises_or_hangs_makes_the_attempt_a_failure_not_a_zero():
    def fails(_):
        raise ConnectionError("sandbox down")

    async def rollout(part):
        attempt = art.Trajectory()
        await art.reward(attempt, {"tests": part}, timeout=0.05)
        return attempt

    hangs = lambda _: asyncio.sleep(60)  # noqa: E731
    group = art.TrajectoryGroup(rollout(part) for part in (fails, hangs, lambda _: 1.0))
    (done,) = await art.gather_trajectory_groups([group], pbar_desc=None)
    assert done.rewards == [1.0]
    first, second = (failure.message for failure in done.failures)
    assert first == "the reward 'tests' failed (ConnectionError: sandbox down)"
    assert second == "the reward 'tests' took longer than 0.05 s"


@pytest.mark.parametrize("value", [np.True_, np.float64(1), np.array(1.0), True, 1])
async def test_single_values_of_other_libraries_are_numbers(value):
    assert await art.reward(art.Trajectory(), {"p": value}) == 1.0


async def test_a_time_limit_inside_a_part_is_its_own_failure():
    async def slow(_):
        raise TimeoutError("its server did not answer")

    with pytest.raises(art.RewardError, match=r"'p' failed \(TimeoutError: its server did not"):
        await art.reward(art.Trajectory(), {"p": slow})


async def test_weights_are_checked():
    with pytest.raises(art.ConfigError, match="a weight is given for 'y'"):
        await art.reward(art.Trajectory(), {"x": 1}, weights={"y": 1})
    with pytest.raises(art.ConfigError, match="the weight of 'x' must be a finite number"):
        await art.reward(art.Trajectory(), {"x": 1}, weights={"x": float("inf")})
