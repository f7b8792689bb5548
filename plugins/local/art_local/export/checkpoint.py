"""The checkpoint to export: which step, its verified files, and the base model under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from art_core import LoggedRun
from art_core.base.errors import ConfigError
from art_local.models.find import BaseIdentity, resolve_base_model
from art_local.models.load import load_tokenizer
from art_local.session.checkpoints import CheckpointStore, StoredCheckpoint, template_for

NEWEST, BEST = "newest", "best"
METRICS = ("val/reward", "train/reward")
"""The metrics that choose the best step, the first that the run has."""


@attrs.frozen(kw_only=True)
class TrainedModel:
    """A verified checkpoint of a run, with the directory of its base model, which is the
    checkpoint's own if all weights were trained.
    """

    run: LoggedRun
    stored: StoredCheckpoint
    base: Path

    @classmethod
    def of(
        cls,
        run: LoggedRun,
        step: int | str = NEWEST,
        *,
        metric: str | None = None,
        base_model: str | Path | None = None,
    ) -> TrainedModel:
        """Verify a run's checkpoint and find its base model, or the one at `base_model`.

        Raises ConfigError for a step without a checkpoint or another base model than it was trained
        over, DamagedError for files that changed, BackendError for a base model that can't be had.
        """
        store = CheckpointStore(run.path / "checkpoints")
        stored = store.read(_chosen(run, store, step, metric))
        if stored.manifest.get("full_finetune"):
            return cls(run=run, stored=stored, base=stored.path)
        name = str(stored.manifest["base_model"])
        base = resolve_base_model(base_model or name)
        BaseIdentity.of(name, base).check(stored.path, stored.manifest)
        return cls(run=run, stored=stored, base=base)

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return self.stored.step

    @property
    def base_name(self) -> str:
        """The base model's name, as the run's author gave it."""
        return str(self.stored.manifest["base_model"])

    @property
    def is_whole(self) -> bool:
        """True if all weights were trained, False for LoRA."""
        return bool(self.stored.manifest.get("full_finetune"))

    @property
    def dtype(self) -> str:
        """The dtype of the weights that were served while the run trained."""
        return str(self.stored.manifest.get("dtype", "float32"))

    def tokenizer(self) -> Any:
        """Load the tokenizer, with the chat template that the run was trained with."""
        return load_tokenizer(self.base, template_for(None, self.stored.path))


def _chosen(run: LoggedRun, store: CheckpointStore, step: int | str, metric: str | None) -> int:
    steps = store.steps()
    if not steps:
        raise ConfigError(
            f"{run.name} has no checkpoint in {store.directory}",
            "Only backends that train on this machine keep weights in the run's directory; a "
            "service's are downloaded with its own tools.",
        )
    if metric and step != BEST:
        raise ConfigError(
            f"metric {metric!r} is read only by step={BEST!r}, and step is {step!r}",
            "Leave one out, or ask for the best step.",
        )
    if step == NEWEST:
        return steps[-1]
    if step == BEST:
        return _best(run, steps, metric)
    if not isinstance(step, int) or step not in steps:
        raise ConfigError(
            f"{run.name} has no checkpoint of step {step!r}; it has: {', '.join(map(str, steps))}",
            f"Give one of these, {NEWEST!r} or {BEST!r}.",
        )
    return step


def _best(run: LoggedRun, steps: list[int], metric: str | None) -> int:
    for key in (metric,) if metric else METRICS:
        try:
            curve = run.curve(key)
        except ConfigError:
            if metric:
                raise
            continue
        kept = {step: curve[step] for step in steps if step in curve}
        if kept:
            spec = run.taxonomy.spec(run.taxonomy.resolve(key))
            lower = getattr(spec, "direction", None) == "lower"
            return (min if lower else max)(reversed(kept), key=kept.__getitem__)
    raise ConfigError(
        f"no checkpoint of {run.name} has a value of {metric or ' or '.join(METRICS)}",
        f"Give --metric with a metric of those steps, or --step with one of: "
        f"{', '.join(map(str, steps))}.",
    )
