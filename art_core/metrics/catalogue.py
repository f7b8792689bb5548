"""The built-in metrics, and the names that earlier releases of the ART reference gave them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import orjson

from art_core.metrics.taxonomy import MetricSpec, Taxonomy


@cache
def builtin_taxonomy() -> Taxonomy:
    """Return the metrics in `catalogue.json`, without those of plugins.

    Its `aliases` are names of ART 0.5.17 to 0.5.23, for reading only. `train/<metric>` of those
    releases is `reward/<metric>` here. A bare name logged on train has the same form, so
    `Taxonomy.names` looks at the whole row.
    """
    data = orjson.loads(files("art_core.metrics").joinpath("catalogue.json").read_bytes())
    specs = [MetricSpec(**spec) for spec in data["specs"]]
    return Taxonomy({spec.key: spec for spec in specs}, data["aliases"])
