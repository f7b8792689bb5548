"""Write docs/models.md: what the local backend does with tiny models of many architectures.

make models
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import torch  # noqa: TID253
import transformers  # noqa: TID253

from art_local.testing.families import FAMILIES, make_family
from art_local.testing.survey import COLUMNS, TOLERANCE, Findings, survey

PAGE = Path(__file__).parent / "models.md"
HEAD = """# Models

This page is written by `make models` (`docs/models.py`). It makes a tiny random model of each
architecture in fp32 on a CPU (hidden size 32, 2 layers) and compares log-probs. Numbers are the
largest distances in nats.

- served: log-probs that the embedded engine returns for concurrent requests, against a plain
  forward pass of transformers over each whole text.
- LoRA: the trainer's log-probs against that forward pass, and those of the engine that serves the
  trained step against the trainer's.
- packed: packed rows against rows; "rows" for a model that is trained in rows, for a reason below.
- adapter in peft, merged export: the checkpoint loaded by peft; merged, saved and loaded by
  transformers.
- resumed: a second step after a resume, against one without it.
- all weights: as LoRA, with `full_finetune=True`, and its checkpoint loaded by transformers.
"""

SAMPLING = """## How the embedded engine samples

All rows share a forward pass when a model keeps keys and values of full and sliding attention only.
Others are slower:

"""
STATES = {
    "own cache": "rows share a pass, and the model's own cache, when they began with one prompt",
    "whole texts": "no cache gives the log-probs of whole texts, so each token computes them again",
}


def main() -> int:
    """Measure the families named on the command line, or all; write the page for all."""
    torch.set_num_threads(1)
    logging.getLogger("art_local").addHandler(logging.NullHandler())
    names = sys.argv[1:] or list(FAMILIES)
    found: dict[str, Findings] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = survey(lambda name=name: make_family(name), Path(scratch))
        print(f"{name}: {found[name].refusal or _row(found[name])}", flush=True)
    if names == list(FAMILIES):
        PAGE.write_text(page(found))
    faults = {name: each.faults for name, each in found.items() if each.faults}
    for name, columns in faults.items():
        print(f"{name}: more than {TOLERANCE:g} nats off: {columns}", file=sys.stderr)
    return bool(faults)


def page(found: dict[str, Findings]) -> str:
    """Return the page for the findings of all families."""
    works = {name: each for name, each in found.items() if each.refusal is None}
    refused = {name: each for name, each in found.items() if each.refusal is not None}
    torch_version = torch.__version__.partition("+")[0]
    versions = f"torch {torch_version}, transformers {transformers.__version__}"
    lines = [HEAD, f"## What works\n\nMeasured with {versions}.\n"]
    lines += ["| model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {_row(each)} |" for name, each in works.items()]
    lines += ["", "Trained in rows, because:", ""]
    lines += _named({name: each.in_rows for name, each in works.items() if each.in_rows})
    lines += [
        "",
        *_states(works),
        "## What is refused",
        "",
        "`register` raises a `ConfigError`:",
        "",
    ]
    lines += [f"- {name}: {each.refusal}" for name, each in refused.items()]
    return "\n".join(lines) + "\n"


def _states(works: dict[str, Findings]) -> list[str]:
    slower = {name: STATES[each.state] for name, each in works.items() if each.state in STATES}
    return [SAMPLING + "\n".join(_named(slower)), ""]


def _named(reasons: dict[str, str]) -> list[str]:
    """Return a line for each reason, with the names that have it."""
    return [
        f"- {reason}: {'; '.join(name for name, its in reasons.items() if its == reason)}."
        for reason in dict.fromkeys(reasons.values())
    ]


def _row(findings: Findings) -> str:
    cells = []
    for column in COLUMNS:
        apart = findings.nats.get(column)
        cells.append("rows" if apart is None else f"{apart:.0e}")
    return " | ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
