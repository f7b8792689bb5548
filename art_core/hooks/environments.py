"""Environments that plugins offer by name, for `art env` and for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

import attrs

from art_core.base.errors import PluginError, reason_of


@attrs.frozen(kw_only=True)
class EnvironmentSpec:
    """An environment offered by a plugin.

    - `target` is an environment's class, a function without parameters that makes one, or a
      rollout: an async function of a model and a scenario. As a text, "module:name", it is imported
      when it is used, so heavy imports wait until then.
    - `scenarios` are its tasks: a list, a function without parameters that returns one, or
      "module:name" of either.
    - `modules` are imported before: their failure is shown beside the environment's name.
    - `answer` is the field of a scenario with its right answer, or a function that returns it:
      `art env check` needs it to compare rewards.
    """

    name: str
    target: Callable[..., Any] | str
    summary: str
    scenarios: Sequence[Any] | Callable[[], Sequence[Any]] | str = ()
    modules: Sequence[str] = ()
    answer: str | Callable[[Any], Any] = "answer"

    def load(self) -> Callable[..., Any]:
        """Return the class, function or rollout; PluginError when it can't be imported."""

        def imported() -> Any:
            for module in self.modules:
                import_module(module)
            return _imported(self.target)

        target: Callable[..., Any] = self._made("", imported)
        if not callable(target):
            raise PluginError(
                f"the environment {self.name!r} is {target!r:.80}, which is not a function"
            )
        return target

    def tasks(self) -> list[Any]:
        """Return the scenarios; PluginError when they can't be made."""

        def listed() -> list[Any]:
            found = _imported(self.scenarios)
            return list(found() if callable(found) else found)

        scenarios: list[Any] = self._made("the scenarios of ", listed)
        return scenarios

    def _made(self, part: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (Exception, SystemExit) as error:  # the code of others runs when it is imported
            raise PluginError(
                f"{part}the environment {self.name!r} can't be loaded: {reason_of(error)}"
            ) from error


def _imported(given: Any) -> Any:
    return resolve_name(given) if isinstance(given, str) else given
