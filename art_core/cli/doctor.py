"""`art doctor RUN`: what goes wrong in a run, since when, what it has cost and what to change."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.checks.curves import RunCurves
from art_core.checks.examine import examine
from art_core.checks.finding import CheckSpec, Finding
from art_core.cli.arguments import add_run
from art_core.cli.text import counted
from art_core.hooks.commands import ExitStatus, Output, Record
from art_core.hooks.host import Plugins
from art_core.log.reader import find_run
from art_core.log.rundir import runs_path

_HELP = """\
RUN is a name, project/name, or a run's directory. The rules read the log and nothing else, so that
they work on a run that goes on, that was killed, or that ART wrote. Their limits are in
docs/doctor.md.

examples:
  art doctor agent-001
  art doctor agent-001 --rule entropy-collapse
  art doctor agent-001 --fail || echo "it needs a look"
  art doctor agent-001 --json | jq '.findings[] | .rule'
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor", help="what goes wrong in a run, since when, at what cost", epilog=_HELP
    )
    add_run(parser)
    parser.add_argument(
        "--rule", action="append", metavar="NAME", help="apply this rule only; may be repeated"
    )
    parser.add_argument("--fail", action="store_true", help="exit status 1 if there is a finding")
    parser.set_defaults(run=examine_run)


def examine_run(arguments: argparse.Namespace, plugins: Plugins) -> Iterator[Output]:
    """Yield the findings, and exit status 1 with `--fail` if there are any."""
    rules = _rules(plugins.checks(), arguments.rule)
    run = find_run(arguments.name, runs_path(arguments.dir), plugins.taxonomy())
    curves = RunCurves.of_rows(run.rows(), run.taxonomy)
    examination = examine(curves, rules)
    count = f"{counted(len(rules), 'rule')}, {counted(len(curves.steps), 'step')}"
    values = {
        "run": run.name,
        "steps": len(curves.steps),
        "rules": [rule.name for rule in rules],
        "findings": [attrs.asdict(finding) for finding in examination.findings],
        "warnings": list(examination.warnings.values()),
    }
    heading = f"{run.name}: {counted(len(examination.findings), 'finding')} ({count})"
    lines = [line for finding in examination.findings for line in finding_lines(finding)]
    warnings = [f"warning: {warning}" for warning in examination.warnings.values()]
    yield Record(values, [heading, *lines, *warnings])
    if arguments.fail and examination.findings:
        yield ExitStatus(1)


def finding_lines(finding: Finding) -> list[str]:
    """Return a finding as lines: since when, the problem, its cost, what to change."""
    return [
        "",
        finding.heading,
        f"  {finding.problem}.",
        f"  {finding.change}",
        f"  See {finding.metric}.",
    ]


def _rules(offered: dict[str, CheckSpec], names: list[str] | None) -> list[CheckSpec]:
    for name in names or ():
        if name not in offered:
            raise ConfigError(unknown("rule", name, offered, known_as="installed"))
    return [offered[name] for name in names or offered]
