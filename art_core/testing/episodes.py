"""Check an environment before the first paid step: scripted models play episodes in it."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import RolloutFailure
from art_core.data.account import charging, open_account
from art_core.data.outcome import Outcome, outcome
from art_core.data.trajectory import Trajectory
from art_core.environments.environment import Environment, rollout_of
from art_core.evaluation.attempts import by_id
from art_core.testing.check import CheckReport, Fault, Kind, RewardCheck
from art_core.testing.scripts import (
    RIGHT,
    Actor,
    Case,
    Play,
    Stage,
    always,
    plays_of,
    right_of,
    unreachable,
)

_BROKEN = ('{"broken": ', '["a", "list"]', '{"no_such_parameter": 1}', "null", "")
"""Arguments of tool calls that no tool can take."""


async def check_environment(
    environment: Callable[[], Environment],
    scenarios: Iterable[Any],
    *,
    answer: str | Callable[[Any], Any] = "answer",
    timeout: float = 60.0,
) -> CheckReport:
    """Play an environment with scripted models and return what is wrong with it and its reward.

    Rules of environments: a scenario begins in the same way each time, and is not changed; the same
    turns have the same consequences; an episode leaves nothing behind for the next, no thread and
    no process; episodes at the same time do not share state; a broken tool call is answered; the
    right turns end an episode before `max_turns`. The rules of the reward are those of `check`, and
    so are the parameters.
    """
    asked = by_id(list(scenarios))
    playing = _Playing(environment, asked, timeout)
    right = {key: right_of(scenario, answer) for key, scenario in asked.items()}
    await playing.run({key: best_play(turns) for key, turns in right.items()})
    playing.look_at_ends([key for key, turns in right.items() if turns is not None])
    stage, down = Stage(), Actor(Stage(unreachable))
    checking = RewardCheck(rollout_of(environment), asked, right, Actor(stage), stage, timeout)
    of_reward = await checking.run(down)
    kinds = {fault.kind for fault in playing.faults}
    more = [f for f in of_reward.faults if f.kind != "not repeatable" or not kinds & _STATEFUL]
    attempts = playing.attempts + of_reward.attempts
    usd = playing.usd + of_reward.usd_per_attempt * of_reward.attempts
    return attrs.evolve(
        of_reward,
        faults=[*playing.faults, *more],
        attempts=attempts,
        usd_per_attempt=usd / attempts,
    )


async def played(
    environment: Callable[[], Environment], scenario: Any, play: Play, timeout: float
) -> Outcome:
    """Return one episode of a scripted model, without an endpoint; what fails is data."""
    return await outcome(rollout_of(environment)(Actor(Stage(play)), scenario), timeout)


def best_play(right: Any) -> Play:
    """Return the scripted model that gives the right turns, or one without an answer."""
    return plays_of(Case("", right, ("",))).get(RIGHT, always("I don't know."))


_STATEFUL: set[Kind] = {"reset", "not repeatable", "not independent", "shared"}


@attrs.define
class _Playing:
    environment: Callable[[], Environment]
    scenarios: Mapping[str, Any]
    timeout: float
    faults: list[Fault] = attrs.field(factory=list)
    attempts: int = 0
    usd: float = 0.0
    first: dict[str, Outcome] = attrs.field(factory=dict)

    async def run(self, plays: Mapping[str, Play]) -> None:
        """Play each scenario again and again, in a row and at the same time, and compare."""
        before = _left_open()
        untouched = copy.deepcopy(dict(self.scenarios))
        for key, play in plays.items():
            self.first[key] = await self._episode(key, play)
            if not self._same(key, await self._episode(key, play)):
                break
        else:
            await self._look_at_state(plays)
        await self._look_at_odd_messages()
        changed = [key for key, value in self.scenarios.items() if value != untouched[key]]
        if changed:
            self._add(
                "scenario changed",
                f"an episode changes the scenario {changed[0]!r}: other attempts at it begin with "
                "what is left. Copy what you change.",
            )
        if _left_open() - before:
            self._add(
                "left open",
                "after its episodes threads or processes of the environment go on. End them in "
                "close().",
            )

    def look_at_ends(self, keys: Iterable[str]) -> None:
        """Look whether the right turns end their episodes."""
        for key in keys:
            found = self.first.get(key)
            if isinstance(found, Trajectory) and found.metrics["unfinished"]:
                self._add(
                    "endless",
                    f"the right turns do not end the episode {key!r} in "
                    f"{found.metrics['turns']:g} turns. Return None when it is over, or raise "
                    "max_turns.",
                )
                return

    def _same(self, key: str, again: Outcome) -> bool:
        """Look whether a second episode is like the first."""
        first = self.first[key]
        place = _difference(first, again)
        if place == "":
            return True
        if place == "messages 1":
            text = "begins differently the second time: attempts at it can't be compared"
            self._add("reset", f"the scenario {key!r} {text}. Use a seed of the scenario.")
        else:
            self._add(
                "not repeatable",
                f"the same turns at {key!r} lead to different {place} the second time. Use a seed "
                "of the scenario.",
            )
        return False

    async def _look_at_state(self, plays: Mapping[str, Play]) -> None:
        key = next(iter(plays))
        place = _difference(self.first[key], await self._episode(key, plays[key]))
        if place:
            self._add(
                "not independent",
                f"after episodes of other scenarios {key!r} has different {place}. Keep state in "
                "the object of an episode, not in its class or module.",
            )
            return
        twice = [*plays, *plays]
        together = await asyncio.gather(*(self._episode(key, plays[key]) for key in twice))
        for key, found in zip(twice, together, strict=True):
            place = _difference(self.first[key], found)
            if place:
                self._add(
                    "shared",
                    f"beside other episodes {key!r} has different {place}. Keep state in the "
                    "object of an episode, not in its class or module.",
                )
                return

    async def _look_at_odd_messages(self) -> None:
        key = next(iter(self.scenarios))
        empty = await self._episode(key, lambda *_: {"content": None})
        if isinstance(empty, RolloutFailure):
            self._add("raises", f"a message without content ends the attempt: {empty}")
        first = self.first[key]
        tools = (first.tools if isinstance(first, Trajectory) else None) or []
        names = [str(tool.get("function", {}).get("name")) for tool in tools]
        calls = [("no_such_tool", "{}"), *((name, text) for name in names for text in _BROKEN)]
        for name, arguments in calls if tools else ():
            problem = _unanswered(await self._episode(key, _calling(name, arguments)))
            if problem:
                self._add("tool", f"a call of {name} with the arguments {arguments!r} {problem}")
                return

    async def _episode(self, key: str, play: Play) -> Outcome:
        account = open_account()
        with charging(account):
            found = await played(self.environment, self.scenarios[key], play, self.timeout)
        self.attempts += 1
        self.usd += math.fsum(call.quote() or 0.0 for call in account.take())
        return found

    def _add(self, kind: Kind, text: str) -> None:
        self.faults.append(Fault(kind=kind, text=text))


def _calling(name: str, arguments: str) -> Play:
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n in (1, 2)
    ]
    return lambda *_: {"content": None, "tool_calls": calls}


def _unanswered(found: Outcome) -> str:
    """Return what is wrong with the answer to two tool calls, "" for nothing."""
    if isinstance(found, RolloutFailure):
        return f"ends the attempt: {found}. It is a mistake of the model: answer it."
    messages = found.messages()
    place = next(n for n, message in enumerate(messages) if message.get("tool_calls"))
    following = messages[place + 1 :]
    answered = [m.get("tool_call_id") for m in following[:2] if m["role"] == "tool"]
    if following and answered != ["call_1", "call_2"]:
        return "is not answered: each call needs a message of the role 'tool' with its id."
    return ""


def _difference(one: Outcome, other: Outcome) -> str:
    """Return where two episodes differ: "messages N", "tools", "a reward", or "" for nowhere."""
    if isinstance(one, RolloutFailure) or isinstance(other, RolloutFailure):
        both = isinstance(one, RolloutFailure) and isinstance(other, RolloutFailure)
        return "" if both and str(one) == str(other) else "outcomes"
    if _plain(one.tools) != _plain(other.tools):
        return "messages 1"
    pairs = zip(_by_turn(one), _by_turn(other), strict=False)
    for turn, (mine, yours) in enumerate(pairs, 1):
        if mine != yours:
            return f"messages {turn}"
    return "rewards" if not math.isclose(one.total_reward, other.total_reward, abs_tol=1e-9) else ""


def _by_turn(found: Trajectory) -> list[str]:
    """Return the environment's messages before each turn, as text."""
    turns: list[list[Any]] = [[]]
    for message in found.messages():
        if message["role"] == "assistant":
            turns.append([])
        else:
            turns[-1].append(message)
    return [_plain(messages) for messages in turns]


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _left_open() -> set[str]:
    """Return the threads that keep this process alive, and its child processes."""
    pool = "asyncio_"  # threads of the event loop's own pool
    threads = {
        f"thread {thread.ident}"
        for thread in threading.enumerate()
        if not thread.daemon and not thread.name.startswith(pool)
    }
    return threads | {f"process {pid}" for pid in children()}


def children(proc: Path = Path("/proc")) -> Iterable[str]:
    """Yield the ids of this process's children, where the system has a `/proc`."""
    for stat in proc.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[1] == str(os.getpid()):
            yield stat.parent.name
