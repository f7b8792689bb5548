"""`art wandb report RUN`: a report of a run's costs on W&B, or its JSON without an account."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from art_core import CommandSpec, ConfigError, LoggedRun, Plugins, Record, SinkError, open_run
from art_core.base.files import read_json
from art_wandb.plugin import has_key

FILE = "wandb-report.json"

_HELP = """\
The report has the tree of costs, what was bought, and curves of the costs and of the reward over
dollars. It is saved in the W&B project of the run, which the sink `wandb` has sent. Without an API
key, with WANDB_MODE=offline or with --out, it is written as the JSON that W&B stores, and nothing
is sent.

examples:
  art wandb report agent-001
  art wandb report agent-001 --draft
  art wandb report agent-001 --out report.json
"""


def _create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["report"], metavar="report", help="what to write")
    parser.add_argument("name", metavar="RUN", help="a run's name, project/name or directory")
    parser.add_argument("--entity", help="of the report; by default the sink's, else your own")
    parser.add_argument("--project", help="of the report; by default the sink's")
    parser.add_argument(
        "--sink", default="wandb", metavar="NAME", help="the sink's name in the run"
    )
    parser.add_argument("--draft", action="store_true", help="save the report as a draft")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the JSON and send nothing")
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="PATH",
        help="the directory of the runs (default: $ART_DIR, else .art)",
    )


def _run(arguments: argparse.Namespace, _: Plugins) -> Iterator[str | Record]:
    run = open_run(arguments.name, arguments.dir)
    options = sink_options(run, arguments.sink)
    project = arguments.project or options.get("project") or run.model()["project"]
    entity = arguments.entity or options.get("entity") or os.environ.get("WANDB_ENTITY")
    own_id = read_json(run.path / "sinks" / f"{arguments.sink}.json").get("id")
    if own_id is None:
        raise ConfigError(
            f"the sink {arguments.sink!r} has not sent {run.name} to W&B",
            f"art sync {arguments.name} --sink {arguments.sink} sends it.",
        )
    try:
        from art_wandb.report import Shown, cost_report, spec_of
    except ImportError as error:
        raise ConfigError(
            f"reports need {error.name!r}, which is not installed",
            "pip install 'art-wandb[report]'",
        ) from error
    mode = options.get("mode") or os.environ.get("WANDB_MODE")
    if arguments.out is None and has_key() and mode not in {"offline", "disabled"}:
        try:
            report = cost_report(run, Shown(project=project, entity=entity, id=own_id))
            report.save(draft=arguments.draft)
        except Exception as error:
            raise SinkError(
                f"W&B did not take the report: {error}", "--out FILE writes it and sends nothing."
            ) from error
        yield Record({"run": run.name, "url": report.url, "path": None}, [report.url])
        return
    report = cost_report(run, Shown(project=project, entity=entity or "", id=own_id))
    path = arguments.out or run.path / FILE
    path.write_text(json.dumps(spec_of(report), indent=2, ensure_ascii=False) + "\n")
    why = "--out" if arguments.out else "W&B is offline" if has_key() else "no API key is known"
    text = f"{path} has the report; nothing was sent ({why})"
    yield Record({"run": run.name, "url": None, "path": str(path)}, [text])


def sink_options(run: LoggedRun, name: str) -> dict[str, Any]:
    """Return the options that the run's code gave the sink."""
    stored = read_json(run.path / "sinks.json").get(name) or {}
    return dict(stored.get("options") or {})


COMMAND = CommandSpec(
    name="wandb",
    summary="write a W&B report of a run's costs",
    create=_create,
    run=_run,
    help=_HELP,
)
