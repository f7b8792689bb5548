"""Sandboxes that plugins offer by name."""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import attrs

from art_core.base.errors import PluginError, reason_of


@attrs.frozen(kw_only=True)
class SandboxSpec:
    """A sandbox offered by a plugin: `create(**options)` returns a `Sandbox`. As a text,
    "module:name", it is imported when a sandbox is made, so heavy imports wait until then.
    """

    name: str
    create: Callable[..., Any] | str
    summary: str

    def make(self, **options: Any) -> Any:
        """Return a sandbox; PluginError when its code can't be imported."""
        create: Any = self.create
        try:
            create = resolve_name(create) if isinstance(create, str) else create
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"the sandbox {self.name!r} can't be loaded: {reason_of(error)}"
            ) from error
        return create(**options)


_BUILT_IN = {
    "subprocess": ("processes:SubprocessSandbox", "processes of this machine, within limits"),
    "docker": ("containers:docker", "containers of Docker"),
    "podman": ("containers:podman", "containers of Podman"),
}
BUILT_IN = [
    SandboxSpec(name=name, create=f"art_core.environments.{path}", summary=summary)
    for name, (path, summary) in _BUILT_IN.items()
]
