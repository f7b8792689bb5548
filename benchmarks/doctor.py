"""The rules of `art doctor` on made-up runs: 1,000 healthy ones, and 100 of each planted problem.

A problem counts as found if its rule finds it in the rows up to 25 steps after its onset.
`--write` puts the table into the docs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter

from rivals.pages import put

from art_core.checks.curves import RunCurves
from art_core.checks.examine import examine
from art_core.checks.rules import RULES
from art_core.testing.sick_runs import PROBLEMS, healthy_run, sick_run

HEALTHY, SICK, WITHIN = 1000, 100, 25
PAGE = "doctor.md"


def rules_of(curves: RunCurves) -> set[str]:
    """Return the names of the rules that find something."""
    examination = examine(curves, RULES)
    assert not examination.warnings, examination.warnings
    return {finding.rule for finding in examination.findings}


def confusion(first: int) -> tuple[str, dict[str, float]]:
    """Return the table in Markdown, and the figures, for seeds from `first` on."""
    lines = ["| planted | runs | found by its rule | by others |", "|---|---|---|---|"]
    hits = 0
    for problem in PROBLEMS:
        found: Counter[str] = Counter()
        for seed in range(first, first + SICK):
            run = sick_run(problem, seed)
            assert run.onset is not None
            found.update(rules_of(run.curves(run.onset + WITHIN)))
        hits += found[problem]
        others = ", ".join(f"{n} {name}" for name, n in sorted(found.items()) if name != problem)
        lines.append(f"| {problem} | {SICK} | {found[problem]} | {others} |")
    flagged: Counter[str] = Counter()
    ill = 0
    for seed in range(first, first + HEALTHY):
        names = rules_of(healthy_run(seed).curves())
        flagged.update(names)
        ill += bool(names)
    others = ", ".join(f"{n} {name}" for name, n in sorted(flagged.items()))
    lines.append(f"| nothing | {HEALTHY} | | {others} |")
    return "\n".join(lines), {
        "found": hits / SICK / len(PROBLEMS),
        "healthy_flagged": ill / HEALTHY,
    }


def main() -> None:
    """Print the table, and last one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--first", type=int, default=10_000, help="the first seed (10,000)")
    args = parser.parse_args()
    table, figures = confusion(args.first)
    text = f"{table}\n\nMade on {time.strftime('%Y-%m-%d')}, with seeds from {args.first:,} on."
    print(text)
    if args.write:
        put(PAGE, "doctor.py", text)
    targets = {"found": 0.95, "healthy_flagged": 0.02}
    held = figures["found"] >= 0.95 and figures["healthy_flagged"] <= 0.02
    print(json.dumps({"name": "doctor", "figures": figures, "targets": targets, "held": held}))


if __name__ == "__main__":
    main()
