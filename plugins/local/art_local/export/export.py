"""`export_weights`: one checkpoint, in one format, at one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from art_core import LoggedRun
from art_core.base.errors import ConfigError, unknown
from art_local.export.checkpoint import NEWEST, TrainedModel
from art_local.export.destination import destination
from art_local.export.formats import FORMATS


@attrs.frozen(kw_only=True)
class ExportedWeights:
    """What was exported, where it is, and what loads it."""

    run: str
    step: int
    form: str
    dtype: str
    to: str
    files: int
    bytes: int
    loaded_by: str

    def values(self) -> dict[str, Any]:
        """Return the fields by name."""
        return attrs.asdict(self)


def export_weights(
    run: LoggedRun,
    form: str,
    to: str | Path,
    *,
    step: int | str = NEWEST,
    metric: str | None = None,
    dtype: str = "",
    base_model: str | Path | None = None,
) -> ExportedWeights:
    """Write a checkpoint of a run as `adapter`, `merged`, `gguf` or `ollama`.

    - `to`: a directory that is absent or empty, an fsspec URL, or `hub:OWNER/NAME`.
    - `step`: a step, "newest", or "best" by `metric` (`val/reward`, else `train/reward`).
    - `dtype`: float32, bfloat16, float16, or int8 (GGUF's q8_0); by default the one that was served
      while the run trained. Merging is done in float32.
    - `base_model`: the base model, if it is not where it was.

    Raises ConfigError for a wrong argument, BackendError if files can't be read, written or sent;
    then nothing is at `to`.
    """
    if form not in FORMATS:
        raise ConfigError(unknown("format", form, FORMATS))
    model = TrainedModel.of(run, step, metric=metric, base_model=base_model)
    with destination(str(to)) as directory:
        FORMATS[form].write(model, dtype, directory)
        sizes = [file.stat().st_size for file in directory.iterdir()]
    return ExportedWeights(
        run=run.name,
        step=model.step,
        form=form,
        dtype=dtype or ("float32" if form == "adapter" else model.dtype),
        to=str(to),
        files=len(sizes),
        bytes=sum(sizes),
        loaded_by=FORMATS[form].loaded_by,
    )
