"""Merged adapters: one module structure whose parameters are switched, over shared base weights.

The trainer merges an adapter once per step (W + scale * B @ A), so that sampling from it costs the
same as sampling from the base.
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
from art_local.models.products import use_fast_products

Place = tuple[nn.Module, str]


@attrs.frozen(eq=False)
class Adapter:
    """Weights that requests are pinned to: the module attributes that differ from the base, with
    their tensors.

    Names and requests refer to it, so unloading a name does not affect running requests.
    """

    name: str
    changed: tuple[tuple[nn.Module, str, torch.Tensor], ...] = ()


class Weights:
    """A copy of the model's structure that shares its parameters, and the adapters for it.

    `module` is that copy. Later changes of the original's structure (peft) do not affect it;
    changes of its parameters *in place* do: a trainer that fine-tunes them loads copies, also under
    the name "base".
    """

    def __init__(self, model: nn.Module) -> None:
        self.module: Any = sharing_parameters(model).eval()
        use_fast_products(self.module)
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
        """The adapters that new requests can use."""
        return list(self._adapters)

    def get(self, name: str) -> Adapter:
        """Return the current weights of a name; raises KeyError."""
        return self._adapters[name]

    def load(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Name weights: the base with these parameters in place of its own. Replaces the weights of
        a known name.

        Tensors are converted to the base parameter's dtype and device; where they have both, they
        are not copied. A tied parameter may be given by its first name only. Raises ConfigError
        for a parameter that the model does not have, or of another shape.
        """
        converted = {key: self._converted(key, tensor) for key, tensor in tensors.items()}
        changed = []
        for key, (module, attribute) in self._places.items():
            tensor = converted.get(key, converted.get(self._names[id(self._base[key])]))
            if tensor is not None:
                changed.append((module, attribute, tensor))
        with self._naming:
            self._adapters = {**self._adapters, name: Adapter(name, tuple(changed))}

    def unload(self, name: str) -> None:
        """Remove a name; requests that are pinned to its weights finish with them. Unknown names
        are ignored.
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
        """Switch to the base, so that an unloaded adapter's memory is freed while nothing runs."""
        self.activate(Adapter(BASE))

    def _converted(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        base = self._base.get(key)
        if base is None:
            raise ConfigError(unknown("parameter", key, self._base, known_as="the model has"))
        if tensor.shape != base.shape:
            raise ConfigError(
                f"parameter {key!r} has shape {list(base.shape)}, got {list(tensor.shape)}"
            )
        return tensor.detach().to(device=base.device, dtype=base.dtype)
