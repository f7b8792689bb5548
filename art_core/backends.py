"""Where the weights live: the contract of a backend, and `backend("name")`, which finds one by
name.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from art_core.data.trajectory import TrajectoryGroup
from art_core.errors import ConfigError, PluginError
from art_core.plugins.checks import accepted_options
from art_core.plugins.host import OURS, installed_plugins

if TYPE_CHECKING:
    from art_core.trainable import TrainableModel


@attrs.frozen(kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint that serves a model's weights, newest first.

    `model_name` asks for the newest weights, `<model_name>@<step>` for those of a step; a service
    with another form gives its own `step_suffix`.
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
    """Weights of one step, as a backend keeps them; `path` is None where they are remote."""

    step: int
    path: Path | None = None


@attrs.frozen(kw_only=True)
class TrainResult:
    """What one training step did: the step that the weights now have, and its metrics under
    canonical keys.
    """

    step: int
    metrics: dict[str, float] = attrs.field(factory=dict)
    checkpoint: Path | None = None


@runtime_checkable
class Backend(Protocol):
    """Trains a model's weights and serves them. Stateful; one backend may hold several models."""

    async def register(self, model: TrainableModel) -> Endpoint:
        """Load the model at its last whole checkpoint (or fresh) and serve it."""

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model and free what it holds; `register` brings it back at its last
        checkpoint. A model that is not registered is none of its business.
        """

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`) and serve the new weights.

        Reports what it used through `model.charge(...)`, so that no cost is lost when the step
        fails.
        """

    async def step(self, model: TrainableModel) -> int:
        """Return the training step of the newest weights; 0 before the first."""

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints that exist, oldest first."""

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""

    async def close(self) -> None:
        """Stop serving and free what is held; a second call does nothing."""


_METHODS = [name for name in vars(Backend) if not name.startswith("_")]


@attrs.frozen(kw_only=True)
class BaseModel:
    """A base model that a backend knows by name: what it is, and where it lies when it is here
    already.
    """

    name: str
    summary: str = ""
    path: Path | None = None


class ModelCatalog(Protocol):
    """Base models that a backend can fetch: what `art models` lists and pulls."""

    def list(self) -> Iterable[BaseModel]:
        """Return the models known by name."""

    def pull(self, name: str) -> Path:
        """Fetch a model with a progress bar and return its directory."""


@attrs.frozen(kw_only=True)
class InferenceEngine:
    """An inference engine that a backend can serve with. `path` is the environment of its own that
    it was installed into; `version` is None while it is not installed.
    """

    name: str
    summary: str = ""
    version: str | None = None
    path: Path | None = None


class EngineCatalog(Protocol):
    """Inference engines of a backend: what `art engines` lists, installs and removes."""

    def list(self) -> Iterable[InferenceEngine]:
        """Return the engines known by name."""

    def install(self, name: str, index: str | None = None) -> InferenceEngine:
        """Make the engine's environment, whole or not at all, and show progress. `index` is the
        address of a package index to take packages from, None for pip's own.
        """

    def remove(self, name: str) -> Path | None:
        """Delete the engine's environment; return where it lay, None when it was not there."""


@attrs.frozen(kw_only=True)
class Bill:
    """What a service itself says that a run cost: US dollars by path below `costs/`, as far as it
    has put prices on it; `notes` are lines that say what is missing.
    """

    usd: dict[str, float]
    notes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BackendSpec:
    """A backend offered by a plugin.

    - `create(**options)` returns a `Backend`; its parameters are the options. As a text,
      "module:name", it is imported when a backend is made, so that what is heavy waits until then.
    - `models` and `engines` make what `art models` and `art engines` list.
    - `bill` asks for what a run, by its directory, was billed: `art costs RUN --reconcile`.
    """

    name: str
    create: Callable[..., Backend] | str
    summary: str
    models: Callable[[], ModelCatalog] | None = None
    engines: Callable[[], EngineCatalog] | None = None
    bill: Callable[[Path], Bill] | None = None


def backend(name: str, **options: Any) -> Backend:
    """Make the backend of that name, from the plugins that are installed.

    Raises ConfigError for an unknown name or option (with what there is and what to install) and
    for a missing package, PluginError for a plugin that is installed but broken, also for one whose
    backend lacks a method.
    """
    spec = installed_plugins().backend(name)
    with _told_what_lacks(name):
        create = creator(spec)
        accepted_options(create, options, f"backend {name!r}")
        made = create(**options)
    lacking = [method for method in _METHODS if not hasattr(made, method)]
    if lacking:
        raise PluginError(
            f"backend {name!r} is made as a {type(made).__name__}, which has no "
            f"{', '.join(lacking)}",
            f"A backend has: {', '.join(_METHODS)}.",
        )
    return made


def creator(spec: BackendSpec) -> Callable[..., Backend]:
    """Return what makes a spec's backend, imported now when it is given as a text.

    Raises ConfigError for a missing package, PluginError for a name that its module lacks.
    """
    if not isinstance(spec.create, str):
        return spec.create
    with _told_what_lacks(spec.name):
        try:
            found: Callable[..., Backend] = pkgutil.resolve_name(spec.create)
        except AttributeError as error:
            raise PluginError(
                f"backend {spec.name!r} is to be made by {spec.create!r}: {error}"
            ) from error
        return found


@contextmanager
def _told_what_lacks(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        ours = f"art-{name}" if name in OURS["backend"] else str(error.name)
        raise ConfigError(
            f"backend {name!r} needs {error.name!r}, which is not installed", f"pip install {ours}"
        ) from error
