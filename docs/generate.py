"""Writes parts of the docs that the code knows better; `make docs` runs it, a test checks it."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import art_core as art
from art_core.metrics.taxonomy import CATALOGUE_VERSION, MetricSpec, Taxonomy, builtin_taxonomy

DOCS = Path(__file__).parent
sys.path.append(str(DOCS))

from contract_tables import faults_table, settings_table  # noqa: E402
from plugin_reference import plugin_reference  # noqa: E402
from reference_page import reference  # noqa: E402


def metric_tables(taxonomy: Taxonomy) -> str:
    """Return a Markdown table of the catalogue and one of former names."""
    lines = [f"Catalogue version {CATALOGUE_VERSION}.", ""]
    lines += ["| metric | unit | in a step | better | meaning |", "|---|---|---|---|---|"]
    lines += [_metric_row(spec) for spec in taxonomy.specs.values()]
    lines += ["", "Former names, read and never written:", "", "| former | now |", "|---|---|"]
    lines += [f"| `{old}` | `{new}` |" for old, new in sorted(taxonomy.aliases.items())]
    return "\n".join(lines)


def _metric_row(spec: MetricSpec) -> str:
    way = spec.combine + (", cumulative" if spec.cumulative else "")
    cells = (
        f"`{spec.key}`",
        spec.unit,
        "derived" if spec.derived else way,
        spec.direction or "",
        spec.help,
    )
    return f"| {' | '.join(cells)} |"


def name_table() -> str:
    """Return a Markdown table of the public names with the first sentence of each."""
    lines = ["| name | what it is |", "|---|---|"]
    for name in art.__all__:
        text = inspect.getdoc(getattr(art, name)) or ""
        paragraph = " ".join(text.split("\n\n")[0].split())
        lines.append(f"| `art.{name}` | {first_sentence(paragraph)} |")
    return "\n".join(lines)


def first_sentence(paragraph: str) -> str:
    """Return a paragraph up to its first full stop, safe in a table's cell."""
    return re.split(r"(?<=[a-z`)])\. ", paragraph)[0].replace("|", "\\|").rstrip(".") + "."


def generated(name: str) -> str:
    """Return the text that belongs into a generated part."""
    if name == "metrics":
        return metric_tables(builtin_taxonomy())
    if name == "names":
        return name_table()
    if name == "reference":
        return reference()
    if name == "plugins":
        return plugin_reference()
    kind, _, part = name.partition("_")
    return settings_table(kind) if part == "settings" else faults_table(kind)


def rewritten(page: str) -> str:
    """Return a page with its generated parts made anew."""
    return re.sub(
        r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{generated(found[2])}\n\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Rewrite every page that has a generated part."""
    for path in DOCS.glob("*.md"):
        page = path.read_text()
        if (fresh := rewritten(page)) != page:
            path.write_text(fresh)
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
