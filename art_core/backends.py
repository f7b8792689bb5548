"""Values that backends exchange with the core: endpoints, checkpoints, results, specs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import attrs


@attrs.frozen(kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint that serves a model's weights, newest first.

    `model_name` is the name of the newest weights, `<model_name>@<step>` of those of a step; a
    service with another form gives its own `step_suffix`.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    model_name: str
    step_suffix: str = "@{step}"

    def inference_name(self, step: int | None = None) -> str:
        """Return the name to put into a request: the newest weights, or those of a step."""
        return self.model_name + ("" if step is None else self.step_suffix.format(step=step))


@attrs.frozen(kw_only=True)
class Checkpoint:
    """Weights of one step, as a backend keeps them; `path` is None if they are remote."""

    step: int
    path: Path | None = None


@attrs.frozen(kw_only=True)
class TrainResult:
    """The result of one training step: the new step of the weights, and metrics under canonical
    keys.
    """

    step: int
    metrics: dict[str, float] = attrs.field(factory=dict)
    checkpoint: Path | None = None


@attrs.frozen(kw_only=True)
class BaseModel:
    """A base model that a backend knows by name; `path` is its directory if it was fetched."""

    name: str
    summary: str = ""
    path: Path | None = None


class ModelCatalog(Protocol):
    """Base models that a backend can fetch; `art models` lists and pulls them."""

    def list(self) -> Iterable[BaseModel]:
        """Return the models known by name."""

    def pull(self, name: str) -> Path:
        """Fetch a model with a progress bar and return its directory."""


@attrs.frozen(kw_only=True)
class InferenceEngine:
    """An inference engine that a backend can serve with. `path` is its own environment; `version`
    is None while it is not installed.
    """

    name: str
    summary: str = ""
    version: str | None = None
    path: Path | None = None


class EngineCatalog(Protocol):
    """Inference engines of a backend; `art engines` lists, installs and removes them."""

    def list(self) -> Iterable[InferenceEngine]:
        """Return the engines known by name."""

    def install(self, name: str, index: str | None = None) -> InferenceEngine:
        """Make the engine's environment, whole or not at all, and show progress. `index` is the
        address of a package index to take packages from, None for pip's own.
        """

    def remove(self, name: str) -> Path | None:
        """Delete the engine's environment; return its path, None if there was none."""


@attrs.frozen(kw_only=True)
class Bill:
    """The cost of a run as a service reports it: US dollars by path below `costs/`, as far as the
    service has priced the use; `notes` are lines about what is missing.
    """

    usd: dict[str, float]
    notes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BackendSpec:
    """A backend offered by a plugin.

    - `create(**options)` returns a `Backend`; its parameters are the options. As a text,
      "module:name", it is imported when a backend is made, so heavy imports wait until then.
    - `models` and `engines` make the catalogs of `art models` and `art engines`.
    - `bill` returns the bill of a run, by its directory: `art costs RUN --reconcile`.
    """

    name: str
    create: Callable[..., Any] | str
    summary: str
    models: Callable[[], ModelCatalog] | None = None
    engines: Callable[[], EngineCatalog] | None = None
    bill: Callable[[Path], Bill] | None = None
