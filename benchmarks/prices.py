"""The same bills worked out by hand, by art-core, by genai-prices and by litellm.

The payloads are those of `tests/costs/golden.json`: what providers send, with the sum worked out
by hand. Each library reads them by its own means. litellm has an environment of its own,
`DIR/litellm`; `--install` makes it, and without it its column is left out. `--write` puts the table
into the docs.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import genai_prices
from rivals.environments import add_options, install, python_of
from rivals.pages import put

import art_core as art
from art_core.base.errors import PricingError
from art_core.costs.builder import PriceBook
from art_core.costs.stream import TrackedStream
from art_core.hooks.host import Core
from art_core.metrics.receipt import TokenUsage

ROOT = Path(__file__).parent.parent
CASES = ROOT / "tests" / "costs" / "golden.json"
PAGE = "costs.md"
ASKER = Path(__file__).parent / "rivals" / "litellm_prices.py"
Case = dict[str, Any]
Answer = float | str
"""US dollars, or the name of the error."""


def ours(case: Case, book: PriceBook) -> Answer:
    """Return what art-core books: before the call it asks for a price, after it for the usage."""
    try:
        book.require(case["provider"], case["model"])
    except PricingError as error:
        return type(error).__name__
    seen: list[TokenUsage] = []
    if "chunks" in case:
        list(TrackedStream(iter(case["chunks"]), seen.append))
    else:
        seen.append(book.usage(case["response"], case["provider"]))
    dollars = book.price(case["provider"], case["model"], seen[0])
    return "unpriced" if dollars is None else dollars


def genai(case: Case) -> Answer:
    """Return the price by genai-prices; for a stream, the sum over its chunks."""
    flavor = "chat" if case["provider"] == "openai" else "default"
    found = []
    for chunk in case.get("chunks", [case.get("response")]):
        for said in (chunk, chunk.get("response"), chunk.get("message")):
            if isinstance(said, Mapping):
                kind = "responses" if said.get("object") == "response" else flavor
                try:
                    found.append(float(genai_dollars(said, case["provider"], kind)))
                except ValueError:
                    continue  # nothing of usage in this part of a stream
                except LookupError as error:
                    return type(error).__name__
    return sum(found)


def genai_dollars(said: Mapping[str, Any], provider: str, flavor: str) -> Any:
    """Return the price of one payload, as the library's README asks for it."""
    usage = genai_prices.extract_usage(said, provider_id=provider, api_flavor=flavor)
    return usage.calc_price().total_price


def litellm(cases: list[Case], environments: Path) -> tuple[str, list[Answer]] | None:
    """Return litellm's version and answers; None where it is not installed."""
    python = python_of("litellm", "litellm", environments)
    if python is None:
        return None
    asked = json.dumps(cases)
    said = subprocess.run(
        [python, ASKER], input=asked, capture_output=True, text=True, check=True, timeout=300
    )
    return tuple(json.loads(said.stdout))


def right(case: Case, answer: Answer) -> bool:
    """Equal to the last digit; an unknown price must be an error, not 0."""
    if case["usd"] is None:
        return isinstance(answer, str)
    return isinstance(answer, float | int) and abs(answer - case["usd"]) < 1e-9


def cell(case: Case, answer: Answer) -> str:
    """Return an answer for the table, a wrong one in bold."""
    text = f"{answer:.4f}" if isinstance(answer, float | int) else answer
    return text if right(case, answer) else f"**{text}**"


def by_hand(case: Case) -> str:
    """Return the sum and how it was made: thousands of tokens times dollars per million."""
    if case["usd"] is None:
        return "no price"
    parts = (f"{tokens / 1000:g}k × {rate:g}" for tokens, rate in case["hand"])
    return f"{case['usd']:.4f} = {' + '.join(parts)}"


def table(cases: list[Case], answers: dict[str, list[Answer]]) -> str:
    """Return the table in Markdown."""
    lines = [f"| model | payload | by hand | {' | '.join(answers)} |"]
    lines.append("|---" * (3 + len(answers)) + "|")
    for n, case in enumerate(cases):
        cells = (cell(case, given[n]) for given in answers.values())
        lines.append(
            f"| {case['model']} | {case['name']} | {by_hand(case)} | {' | '.join(cells)} |"
        )
    sums = (str(sum(map(right, cases, given))) for given in answers.values())
    lines.append(f"| | right, of {len(cases)} | | {' | '.join(sums)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    args = parser.parse_args()
    if args.install:
        install(args.env, ["litellm"])
    logging.getLogger("art_core").setLevel(logging.ERROR)
    plugins = art.Plugins()
    plugins.register(Core(), "core")
    cases = json.loads(CASES.read_text())
    answers = {f"art-core {version('art-core')}": [ours(c, PriceBook(plugins)) for c in cases]}
    answers[f"genai-prices {version('genai-prices')}"] = [genai(case) for case in cases]
    asked = litellm(cases, args.env)
    if asked is not None:
        answers[f"litellm {asked[0]}"] = asked[1]
    text = f"{table(cases, answers)}\n\nMade on {time.strftime('%Y-%m-%d')}."
    print(text)
    if asked is None:
        print("not installed: litellm (python benchmarks/prices.py --install)")
    if args.write:
        put(PAGE, "prices.py", text)
    figures = {"cases": len(cases)}
    figures |= {name: sum(map(right, cases, given)) for name, given in answers.items()}
    targets = {next(iter(answers)): len(cases)}
    held = all(figures[name] == target for name, target in targets.items())
    print(json.dumps({"name": "prices", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    main()
