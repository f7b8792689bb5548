"""Check a rollout's reward before the first paid step: scripted models take the model's place.

One answers correctly; others answer nothing, repeat the prompt, list every answer, and more. If a
reward pays such answers, training teaches them.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from art_core.base.errors import ConfigError
from art_core.data.account import charging, open_account
from art_core.data.trajectory import Trajectory
from art_core.evaluation.attempts import Rollout, by_id
from art_core.evaluation.evaluate import run_attempt
from art_core.model.model import Model
from art_core.model.trainable import TrainableModel
from art_core.testing.echo import EchoBackend
from art_core.testing.scripts import (
    LONG,
    PADDED,
    RIGHT,
    SCRIPTS,
    Case,
    Play,
    Script,
    Stage,
    always,
    plays_of,
    right_of,
    shared_words,
)

MAX_CONSTANTS = 40
"""Words that a constant answer is tried with, when the scenarios name no answers."""
_SAME = 1e-9
_LARGE = 100.0
_FULL = 0.95
"""Share of the best reward at which a constant answer earns "the full reward"."""
_GROWTH = 2.0
"""How many times more four times as much padding may change a reward that is bounded."""


Kind = Literal[
    # of a reward
    "beaten",
    "constant",
    "not finite",
    "unbounded",
    "raises",
    "not repeatable",
    "no spread",
    "down",
    # of an environment
    "reset",
    "not independent",
    "shared",
    "scenario changed",
    "tool",
    "endless",
    "left open",
]


@attrs.frozen(kw_only=True)
class Fault:
    """Something that is wrong with a reward; `kind` names the rule."""

    kind: Kind
    text: str


@attrs.frozen(kw_only=True)
class CheckReport:
    """Mean rewards by scripted model, faults, notes, and US dollars per attempt."""

    rewards: Mapping[str, float]
    faults: Sequence[Fault]
    notes: Sequence[str]
    attempts: int
    usd_per_attempt: float


async def check(
    rollout: Rollout,
    scenarios: Iterable[Any],
    *,
    answer: str | Callable[[Any], Any] = "answer",
    timeout: float = 60.0,
) -> CheckReport:
    """Run the rollout on scenarios with scripted models and return what is wrong with its reward.

    `answer` is the field of a scenario that holds the right answer, or a function that returns it;
    without one the rules about right answers are left out. For a task of several turns the answer
    is a list of turns, texts and messages, or a function of the conversation that returns the next.

    Rules: the right answer beats all others; no constant answer earns the full reward; rewards are
    finite, bounded, the same for the same answer, and differ within a scenario; a bad answer is
    worth little and raises nothing; an endpoint that is down is a failure, not a reward. Raises
    ConfigError for no or doubled scenarios.
    """
    asked = by_id(list(scenarios))
    right = {key: right_of(scenario, answer) for key, scenario in asked.items()}
    with tempfile.TemporaryDirectory(prefix="art-check-") as folder:
        stage = Stage()
        backend = EchoBackend(reply=stage.reply, gives_tokens=False)
        options: dict[str, Any] = {"base_path": folder, "sinks": []}
        model = TrainableModel(name="scripted", project="check", base_model="scripted", **options)
        await model.register(backend)
        down = _Down(
            name="down",
            project="check",
            inference_base_url="http://127.0.0.1:9/v1",
            inference_model_name="down",
            **options,
        )
        try:
            return await RewardCheck(rollout, asked, right, model, stage, timeout).run(down)
        finally:
            await model.close()
            await backend.close()
            await down.close()


class _Down(Model):
    """A model whose endpoint refuses every connection; its client does not try again."""

    def openai_client(self) -> Any:
        return super().openai_client().with_options(max_retries=0)


@attrs.define
class RewardCheck:
    """The rules of `check` with a scripted model, `model`, which answers what its stage plays."""

    rollout: Rollout
    scenarios: Mapping[str, Any]
    right: Mapping[str, Any]
    model: Any
    stage: Stage
    timeout: float
    faults: list[Fault] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)
    attempts: int = 0
    usd: float = 0.0
    _slots: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(1))

    async def run(self, down: Any) -> CheckReport:
        """Try every script on every scenario, and a model whose endpoint is `down`."""
        prompts = await self._prompts()
        blank = {key: Case(prompts[key], self.right[key], ()) for key in self.scenarios}
        texts = [case.expected for case in blank.values() if case.expected is not None]
        answers = list(dict.fromkeys(texts)) or shared_words(list(prompts.values()))
        cases = {k: attrs.evolve(case, answers=answers or [""]) for k, case in blank.items()}
        known = all(right is not None for right in self.right.values())
        plays = self._plays(cases, known=known)
        found = {name: await self._rewards(name, by_case) for name, by_case in plays.items()}
        constants = {
            word: await self._rewards(f"always says {word!r}", dict.fromkeys(cases, always(word)))
            for word in answers[:MAX_CONSTANTS]
        }
        if known:
            self._compare_with_right(found)
            self._look_at_bounds(found)
        self._look_at_constants(found, constants)
        self._look_at_spread(found, constants)
        await self._repeat(found, constants, plays)
        await self._take_down(down)
        rows = found | {f"always says {word!r}": rewards for word, rewards in constants.items()}
        return CheckReport(
            rewards={name: _mean(rewards) for name, rewards in rows.items()},
            faults=self.faults,
            notes=self.notes,
            attempts=self.attempts,
            usd_per_attempt=self.usd / self.attempts if self.attempts else 0.0,
        )

    async def _prompts(self) -> dict[str, str]:
        found = {}
        for key in self.scenarios:
            await self._attempt(key, always(""))
            found[key] = self.stage.prompts[0] if self.stage.prompts else ""
        if not any(found.values()):
            raise ConfigError(
                "the rollout never asked the model",
                "Call it through model.openai_client() with model.get_inference_name().",
            )
        return found

    def _plays(self, cases: Mapping[str, Case], *, known: bool) -> dict[str, dict[str, Play]]:
        """Return the scripted models by name, each with its play of every scenario."""
        by_case = {key: plays_of(case) for key, case in cases.items()}
        names = dict.fromkeys(name for plays in by_case.values() for name in plays)
        complete = {n: {k: p[n] for k, p in by_case.items() if n in p} for n in names}
        return {
            name: plays
            for name, plays in complete.items()
            if (len(plays) == len(cases) and (known or name not in (RIGHT, PADDED, LONG)))
            and not (name in SCRIPTS and _always_right(SCRIPTS[name], cases))
        }

    async def _attempt(self, key: str, play: Play) -> float | str:
        """Return the reward of a scripted model, or what went wrong."""
        self.stage.begin(play)
        account = open_account()
        with charging(account):
            result = await run_attempt(
                self.rollout, self.model, self.scenarios[key], self.timeout, self._slots
            )
        self.attempts += 1
        self.usd += math.fsum(call.quote() or 0.0 for call in account.take())
        if isinstance(result, Trajectory):
            return result.total_reward
        return f"{result.reason}: {result}"

    async def _rewards(self, name: str, plays: Mapping[str, Play]) -> list[float]:
        rewards = []
        for key, play in plays.items():
            found = await self._attempt(key, play)
            if isinstance(found, float):
                rewards.append(found)
                continue
            kind, _, problem = found.partition(": ")
            self._add(
                "not finite" if kind == "bad_reward" else "raises",
                f"a model that {name} gets no reward at {key!r}: {problem}. A bad answer needs a "
                "low reward: failed attempts teach nothing.",
            )
        if rewards and max(map(abs, rewards)) > _LARGE:
            self.notes.append(f"a model that {name} gets up to {max(rewards, key=abs):g}")
        return rewards

    def _compare_with_right(self, found: Mapping[str, list[float]]) -> None:
        right = _mean(found[RIGHT])
        for name, rewards in found.items():
            if name == RIGHT or not rewards:
                continue
            over = _mean(rewards) - right
            if over > _SAME or (name not in (PADDED, LONG) and over > -_SAME):
                self._add(
                    "beaten",
                    f"a model that {name} gets {_mean(rewards):.3g}, the right answer {right:.3g}",
                )

    def _look_at_bounds(self, found: Mapping[str, list[float]]) -> None:
        right, padded, longer = (_mean(found[name]) for name in (RIGHT, PADDED, LONG))
        change = abs(longer - right)
        if change > _GROWTH * max(abs(padded - right), 1.0, abs(right)):
            self._add(
                "unbounded",
                f"with more padding the reward goes from {padded:.3g} on to {longer:.3g}. Limit "
                "what one part can add or take: a single attempt then can't outweigh its group.",
            )

    def _look_at_constants(
        self, found: Mapping[str, list[float]], constants: Mapping[str, list[float]]
    ) -> None:
        tried = [*found.values(), *constants.values()]
        best = max((max(rewards) for rewards in tried if rewards), default=0.0)
        if best <= 0 or len(self.scenarios) == 1:
            return
        for word, rewards in constants.items():
            if rewards and _mean(rewards) >= _FULL * best:
                self._add(
                    "constant", f"always answering {word!r} earns the full reward, {best:.3g}"
                )

    def _look_at_spread(
        self, found: Mapping[str, list[float]], constants: Mapping[str, list[float]]
    ) -> None:
        tried = [r for rewards in (*found.values(), *constants.values()) for r in rewards]
        if tried and max(tried) - min(tried) <= _SAME:
            self._add("no spread", f"every answer is worth {tried[0]:.3g}: nothing can be learned")

    async def _repeat(
        self,
        found: Mapping[str, list[float]],
        constants: Mapping[str, list[float]],
        plays: Mapping[str, Mapping[str, Play]],
    ) -> None:
        """Give the best answers again: their rewards must be the same."""
        best = max(found, key=lambda name: _mean(found[name]) if found[name] else -math.inf)
        again, first = plays[best], found[best]
        word = max(constants, key=lambda w: _mean(constants[w]), default=None)
        if word is not None and _mean(constants[word]) > _mean(first):
            again, first = dict.fromkeys(self.scenarios, always(word)), constants[word]
        if len(first) != len(self.scenarios):
            return
        for (key, play), before in zip(again.items(), first, strict=True):
            now = await self._attempt(key, play)
            if not isinstance(now, float) or abs(now - before) > _SAME:
                self._add(
                    "not repeatable", f"the same answer at {key!r} got {before:.3g}, then {now}"
                )
                return

    async def _take_down(self, down: Any) -> None:
        key = next(iter(self.scenarios))
        scenario = self.scenarios[key]
        result = await run_attempt(self.rollout, down, scenario, self.timeout, self._slots)
        if isinstance(result, Trajectory):
            self._add(
                "down",
                f"an endpoint that is down gives the reward {result.total_reward:.3g}. Let the "
                "error leave the rollout: the attempt is then a failure, and teaches nothing.",
            )

    def _add(self, kind: Kind, text: str) -> None:
        if not any(
            fault.kind == kind and kind in ("raises", "not finite") for fault in self.faults
        ):
            self.faults.append(Fault(kind=kind, text=text))


def _always_right(script: Script, cases: Mapping[str, Case]) -> bool:
    return all(script(case) == case.expected for case in cases.values())


def _mean(rewards: Sequence[float]) -> float:
    return math.fsum(rewards) / len(rewards) if rewards else math.nan
