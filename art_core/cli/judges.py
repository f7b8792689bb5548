"""`art check --judges NAMES --pairs FILE`: which judge agrees with people, at what price."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from art_core.base.errors import ConfigError
from art_core.cli.arguments import add_budget, limited
from art_core.cli.evaluation import scenarios_in
from art_core.data.account import charging, open_account
from art_core.hooks.commands import Column, ExitStatus, Output, Record, Table
from art_core.rewards.calibration import Calibration, LabelledPair, calibrate, cheapest

_COLUMNS = (
    Column(key="judge"),
    Column(key="agreement", form=".0%", right=True),
    Column(key="consistency", form=".0%", right=True),
    Column(key="repeatability", form=".0%", right=True),
    Column(key="usd", heading="$/call", form=".6f", right=True),
)


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of `art check`."""
    group = parser.add_argument_group("judges, in place of a target")
    group.add_argument("--judges", metavar="NAMES", help="such as openai/gpt-4.1-mini, by commas")
    group.add_argument("--pairs", type=Path, metavar="FILE", help="answers of known order")
    group.add_argument("--criteria", default="", metavar="TEXT", help="what makes one better")
    group.add_argument(
        "--agreement", type=float, default=0.9, metavar="SHARE", help="what is enough (0.9)"
    )
    add_budget(group)


def check_judges(arguments: argparse.Namespace) -> Iterator[Output]:
    """Yield how far each judge agrees, the cheapest that agrees, and exit status 1 if none does."""
    if not (arguments.judges and arguments.pairs):
        raise ConfigError(
            "art check needs a target, or --judges and --pairs",
            "Such as: art check my_agent:rollout",
        )
    names = [name.strip() for name in arguments.judges.split(",") if name.strip()]
    pairs = [_pair(value) for value in scenarios_in(arguments.pairs)]
    with limited(arguments):
        found = asyncio.run(_calibrated(names, pairs, arguments.criteria))
    yield from _shown(found, arguments.agreement)


async def _calibrated(
    names: Sequence[str], pairs: Sequence[LabelledPair], criteria: str
) -> list[Calibration]:
    account = open_account()
    with charging(account):
        found = await calibrate(names, pairs, criteria=criteria)
    account.take()  # shown here, and part of no run
    return found


def _shown(found: Sequence[Calibration], agreement: float) -> Iterator[Output]:
    names = ("agreement", "consistency", "repeatability", "usd")
    rows = [{"judge": c.judge.name} | {name: getattr(c, name) for name in names} for c in found]
    yield Table(name="judges", rows=rows, columns=_COLUMNS)
    yield ""
    try:
        best = cheapest(found, agreement).judge.name
    except ConfigError as error:
        yield Record({"cheapest": None}, [f"fault: {error}"])
        yield ExitStatus(1)
    else:
        text = f"{best} is the cheapest that agrees in at least {agreement:.0%} of the pairs"
        yield Record({"cheapest": best}, [text])


def _pair(value: Any) -> LabelledPair:
    fields = value if isinstance(value, dict) else {}
    texts = {name: fields.get(name) for name in ("better", "worse", "question")}
    texts["question"] = texts["question"] or ""
    if not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(
            f"{value!r:.80} is no pair",
            'Give {"better": "...", "worse": "...", "question": "..."} per line.',
        )
    return LabelledPair(**{name: str(text) for name, text in texts.items()})
