"""Attempts as readable conversations: `art show RUN --attempts`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from art_core.base.errors import ConfigError, RolloutFailure
from art_core.cli.text import counted
from art_core.data.trajectory import Trajectory, is_choice, is_cut_off, message_of
from art_core.hooks.commands import Output, Record
from art_core.log.reader import LoggedRun

LIMIT = 5
_WIDTH = 100
_INDENT = " " * 4


def add_attempts(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `art show`."""
    group = parser.add_argument_group("attempts")
    group.add_argument(
        "--attempts", action="store_true", help="print conversations in place of curves"
    )
    group.add_argument("--step", type=int, metavar="N", help="of this step (default: the newest)")
    group.add_argument("--split", default="train", help="of this split (default: train)")
    group.add_argument("--scenario", metavar="ID", help="at this scenario")
    order = group.add_mutually_exclusive_group()
    order.add_argument("--best", action="store_true", help="the highest reward first")
    order.add_argument("--worst", action="store_true", help="the lowest reward first")
    order.add_argument("--failed", action="store_true", help="failures only")
    group.add_argument("--limit", type=int, default=LIMIT, metavar="N", help="how many (5)")
    group.add_argument(
        "--no-pager",
        action="store_false",
        dest="paged",
        help="print long output without $PAGER",
    )


@attrs.frozen
class _Shown:
    scenario: str | None
    result: Trajectory | RolloutFailure

    @property
    def reward(self) -> float:
        return self.result.total_reward if isinstance(self.result, Trajectory) else float("-inf")


def show_attempts(run: LoggedRun, arguments: argparse.Namespace) -> Iterator[Output]:
    """Yield the attempts of a step; ConfigError for a step or a scenario without any."""
    steps = run.steps(arguments.split)
    if arguments.step is None and not steps:
        raise ConfigError(f"{run.name} has no {arguments.split} trajectories")
    step = steps[-1] if arguments.step is None else arguments.step
    found = _chosen(run, step, arguments)
    heading = f"{run.name}  {arguments.split} step {step}  {counted(len(found), 'attempt')}"
    yield Record({"run": run.name, "split": arguments.split, "step": step}, [heading])
    shown = found[: arguments.limit]
    values = [_values(each) for each in shown]
    lines = [line for n, each in enumerate(shown, 1) for line in _lines(n, each)]
    rest = len(found) - len(shown)
    if rest > 0:
        lines += ["", f"{counted(rest, 'more attempt')}: --limit {len(found)} prints all"]
    yield Record({"attempts": values}, lines)


def _chosen(run: LoggedRun, step: int, arguments: argparse.Namespace) -> list[_Shown]:
    found = []
    for group in run.groups(step, arguments.split):
        scenario = group.metadata.get("scenario_id")
        name = None if scenario is None else str(scenario)
        results: Sequence[Any] = (*group.trajectories, *group.failures)
        found += [_Shown(name, result) for result in results]
    if arguments.scenario is not None:
        known = sorted({each.scenario for each in found if each.scenario is not None})
        found = [each for each in found if each.scenario == arguments.scenario]
        if not found:
            raise ConfigError(
                f"step {step} has no attempt at scenario {arguments.scenario!r}",
                f"It has: {', '.join(known[:10]) or 'none with an id'}.",
            )
    if arguments.failed:
        return [each for each in found if isinstance(each.result, RolloutFailure)]
    if arguments.best or arguments.worst:
        found = [each for each in found if isinstance(each.result, Trajectory)]
        found.sort(key=lambda each: each.reward, reverse=arguments.best)
    return found


def _lines(number: int, each: _Shown) -> Iterator[str]:
    scenario = f"  scenario {each.scenario}" if each.scenario is not None else ""
    yield ""
    if isinstance(each.result, RolloutFailure):
        yield f"━━ {number}{scenario}  failed ({each.result.reason}): {each.result}"
        yield from _indented(each.result.traceback)
        return
    trajectory = each.result
    parts = "  ".join(f"{name} {value:.4g}" for name, value in trajectory.metrics.items())
    usd = trajectory.metadata.get("usd")
    heading = f"━━ {number}{scenario}  reward {trajectory.total_reward:.4g}"
    cost = f"  ${usd:.6f}" if isinstance(usd, float) else ""
    yield heading + (f"  ({parts})" if parts else "") + cost
    main, *others = trajectory.histories()
    yield from _conversation(main.messages_and_choices, trajectory.turn_rewards)
    for other in others:
        yield "  another conversation of the attempt:"
        yield from _conversation(other.messages_and_choices)
    yield from (f"  log: {line}" for line in trajectory.logs)


def _conversation(items: Sequence[Any], rewards: Sequence[float] = ()) -> Iterator[str]:
    earned = iter(rewards)
    for item in items:
        message = message_of(item)
        role = message.get("role", "?")
        name = f" {message['name']}" if message.get("name") else ""
        marks = f" ({_marks(item, next(earned, None))})" if is_choice(item) else ""
        yield f"  {role}{name}{marks}:"
        yield from _indented(_text(message.get("content")))
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            yield f"{_INDENT}-> {function.get('name')}({function.get('arguments')})"


def _marks(choice: Any, reward: float | None) -> str:
    marks = ["sampled", "cut off"] if is_cut_off(choice) else ["sampled"]
    return ", ".join(marks if reward is None else [*marks, f"reward {reward:.4g}"])


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        parts = [p.get("text", json.dumps(p, default=str)) for p in content if isinstance(p, dict)]
        return "\n".join(map(str, parts))
    return json.dumps(content, default=str)


def _indented(text: str) -> Iterator[str]:
    for raw in text.splitlines():
        # A model may write what a terminal would obey.
        line = "".join(c if c.isprintable() else " " if c == "\t" else "\ufffd" for c in raw)
        wrapped = textwrap.wrap(
            line, _WIDTH, replace_whitespace=False, drop_whitespace=False, break_long_words=False
        )
        yield from (_INDENT + part for part in wrapped or [""])


def _values(each: _Shown) -> dict[str, Any]:
    if isinstance(each.result, RolloutFailure):
        return {"scenario": each.scenario, "failure": attrs.asdict(each.result)}
    trajectory = each.result
    return {
        "scenario": each.scenario,
        "reward": trajectory.total_reward,
        "turn_rewards": trajectory.turn_rewards,
        "usd": trajectory.metadata.get("usd"),
        "metrics": trajectory.metrics,
        "conversations": [history.messages() for history in trajectory.histories()],
        "cut_off": any(map(is_cut_off, trajectory.messages_and_choices)),
        "logs": trajectory.logs,
    }
