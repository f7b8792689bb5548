"""The contract of a backend, and `backend("name")`, which makes one by name."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from art_core.backends import BackendSpec, Checkpoint, Endpoint, TrainResult
from art_core.base.errors import BackendError, ConfigError, PluginError, unknown
from art_core.data.trajectory import TrajectoryGroup
from art_core.hooks.answers import OURS
from art_core.hooks.host import installed_plugins

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel

T = TypeVar("T")


@runtime_checkable
class Backend(Protocol):
    """Trains a model's weights and serves them. Stateful; one backend may hold several models."""

    async def register(self, model: TrainableModel) -> Endpoint:
        """Load the model at its last whole checkpoint (or fresh) and serve it."""

    async def unregister(self, model: TrainableModel) -> None:
        """Stop serving the model and free what it holds; `register` brings it back at its last
        checkpoint. For a model that is not registered it does nothing.
        """

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step (`TrainConfig.of(**options)`) and serve the new weights.

        Reports used devices through `model.charge(...)`, so that no cost is lost if the step fails.
        """

    async def step(self, model: TrainableModel) -> int:
        """Return the training step of the newest weights; 0 before the first."""

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints that exist, oldest first."""

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""

    async def close(self) -> None:
        """Stop serving and free all resources; a second call does nothing."""


_METHODS = [name for name in vars(Backend) if not name.startswith("_")]


class RegisteredModels(dict[Path, T]):
    """The models registered with a backend: what the backend holds for each, by run directory.

    `backend` is the backend's name, for messages. Set `closed` when the backend closes.
    """

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.closed = False

    @staticmethod
    def key(model: TrainableModel) -> Path:
        """Return the key of a model: its run directory without symbolic links."""
        return model.run_dir.resolve()

    def of(self, model: TrainableModel) -> T:
        """Return what the backend holds for a model.

        Raises BackendError if the backend is closed, ConfigError if the model is not registered.
        """
        self.check_open()
        try:
            return self[self.key(model)]
        except KeyError:
            raise ConfigError(
                f"model {model.name!r} is not registered with this backend",
                "Call await model.register(backend) first.",
            ) from None

    def check_open(self) -> None:
        """Raise BackendError if the backend is closed."""
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> BackendError:
        """Return the error of a call to a closed backend."""
        return BackendError(
            f"the {self.backend} backend is closed",
            f'Make a new one: art.backend("{self.backend}").',
        )


def backend(name: str, **options: Any) -> Backend:
    """Make the backend of that name, from the plugins that are installed.

    Raises ConfigError for an unknown name or option, with the known ones and what to install, and
    for a missing package; PluginError for a broken plugin, also if its backend lacks a method.
    """
    spec = installed_plugins().backend(name)
    with _naming_the_package(name):
        create = creator(spec)
        accepted_options(create, options, f"backend {name!r}")
        created = create(**options)
    lacking = [method for method in _METHODS if not hasattr(created, method)]
    if lacking:
        raise PluginError(
            f"backend {name!r} is made as a {type(created).__name__}, which has no "
            f"{', '.join(lacking)}",
            f"A backend has: {', '.join(_METHODS)}.",
        )
    return created


def creator(spec: BackendSpec) -> Callable[..., Backend]:
    """Return the callable that makes a spec's backend; import it if it is given as a text.

    Raises ConfigError for a missing package, PluginError for a name that its module lacks.
    """
    if not isinstance(spec.create, str):
        return spec.create
    with _naming_the_package(spec.name):
        try:
            found: Callable[..., Backend] = pkgutil.resolve_name(spec.create)
        except AttributeError as error:
            raise PluginError(
                f"backend {spec.name!r} is to be made by {spec.create!r}: {error}"
            ) from error
        return found


@contextmanager
def _naming_the_package(name: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        ours = f"art-{name}" if name in OURS["backend"] else str(error.name)
        raise ConfigError(
            f"backend {name!r} needs {error.name!r}, which is not installed", f"pip install {ours}"
        ) from error


def options_of(create: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that `create` takes by name."""
    parameters = inspect.signature(create).parameters.values()
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def option_names(create: Callable[..., Any]) -> set[str]:
    """Return the names of the options that `create` takes; none if it does not name them."""
    try:
        return {parameter.name for parameter in options_of(create)}
    except (TypeError, ValueError):
        return set()  # written in C


def accepted_options(create: Callable[..., Any], options: Iterable[str], kind: str) -> None:
    """Raise ConfigError for options that `create` does not take, and for missing ones."""
    given, named = set(options), options_of(create)
    parameters = inspect.signature(create).parameters.values()
    known = [p.name for p in named]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for option in sorted(given.difference(known)):
            raise ConfigError(unknown(f"{kind} option", option, known))
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"{kind} needs {', '.join(missing)}", f"Give {missing[0]}=...")
