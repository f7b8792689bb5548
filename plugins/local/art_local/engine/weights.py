"""Adapters as whole parameters: one module structure, parameters set in microseconds, base weights
shared.

An adapter is merged once a step by whoever trained it (W + scale * B @ A), so that sampling from it
costs what sampling from the base costs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from art_core.base.errors import ConfigError, unknown
from art_local.engine.protocol import BASE
from art_local.models.load import sharing_parameters

Place = tuple[nn.Module, str]


@attrs.frozen(eq=False)
class Adapter:
    """Weights that requests are pinned to: each module attribute that differs from the base, with
    its tensor.

    It lives as long as a name or a request refers to it, so unloading a name never pulls weights
    from under a request.
    """

    name: str
    changed: tuple[tuple[nn.Module, str, torch.Tensor], ...] = ()


class Weights:
    """A copy of the model's structure that shares its parameters, and the adapters that can be set
    into it.

    `module` is that copy. Later changes of the original's structure (peft) do not reach it; changes
    of its parameters *in place* do: a trainer that fine-tunes them loads copies, also under the
    name "base".
    """

    def __init__(self, model: nn.Module) -> None:
        self.module: Any = sharing_parameters(model).eval()
        self._names = {id(tensor): name for name, tensor in self.module.named_parameters()}
        self._places: dict[str, Place] = {}
        self._base: dict[str, nn.Parameter] = {}
        for name, tensor in self.module.named_parameters(remove_duplicate=False):
            owner, _, attribute = name.rpartition(".")
            self._places[name] = (self.module.get_submodule(owner), attribute)
            self._base[name] = tensor
        self._naming = threading.Lock()
        self._adapters = {BASE: Adapter(BASE)}
        self._active = self._adapters[BASE]

    @property
    def names(self) -> list[str]:
        """The adapters that new requests can ask for."""
        return list(self._adapters)

    def get(self, name: str) -> Adapter:
        """Return the weights that a name means now; raises KeyError."""
        return self._adapters[name]

    def load(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give a name to weights: the base with these parameters in place of its own. An old name
        gets new weights.

        Tensors are brought to the base parameter's dtype and device and kept, not copied. A tied
        parameter may be given by its first name alone. Raises ConfigError for a parameter that the
        model does not have, or of another shape.
        """
        given = {key: self._fitting(key, tensor) for key, tensor in tensors.items()}
        changed = []
        for key, (module, attribute) in self._places.items():
            tensor = given.get(key, given.get(self._names[id(self._base[key])]))
            if tensor is not None:
                changed.append((module, attribute, tensor))
        with self._naming:
            self._adapters = {**self._adapters, name: Adapter(name, tuple(changed))}

    def unload(self, name: str) -> None:
        """Forget a name; requests that are pinned to its weights finish with them. An unknown name
        does nothing.
        """
        with self._naming:
            self._adapters = {k: adapter for k, adapter in self._adapters.items() if k != name}

    def activate(self, adapter: Adapter) -> None:
        """Set the adapter's parameters into `module`."""
        if adapter is self._active:
            return
        base = {place: self._base[key] for key, place in self._places.items()}
        for module, attribute, _ in self._active.changed:
            module._parameters[attribute] = base[module, attribute]  # noqa: SLF001
        for module, attribute, tensor in adapter.changed:
            module._parameters[attribute] = tensor  # type: ignore[assignment]  # noqa: SLF001
        self._active = adapter

    def release(self) -> None:
        """Return to the base, so that an unloaded adapter's memory is freed while nothing runs."""
        self.activate(Adapter(BASE))

    def _fitting(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        base = self._base.get(key)
        if base is None:
            raise ConfigError(unknown("parameter", key, self._base, known_as="the model has"))
        if tensor.shape != base.shape:
            raise ConfigError(
                f"parameter {key!r} has shape {list(base.shape)}, got {list(tensor.shape)}"
            )
        return tensor.detach().to(device=base.device, dtype=base.dtype)
