"""`art.toml`, the file in a project's directory that states what `art train` does."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core.base.errors import ConfigError, unknown
from art_core.budgets.budget import Budget
from art_core.rl.config import Check, count, one_of, optional, positive, price, step, whole

FILE = "art.toml"
VERSION = 1
SAMPLERS = ("epochs", "thompson")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a text, got {value!r:.80}")


def _texts(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{name} must be a list of texts, got {value!r:.80}")


_NEEDED: Any = attrs.NOTHING
KEYS: Mapping[str, Mapping[str, tuple[Check, Any]]] = {
    "run": {
        "name": (_text, _NEEDED),
        "project": (_text, _NEEDED),
        "rollout": (_text, _NEEDED),
        "scenarios": (_text, _NEEDED),
        "judge": (optional(_text), None),
        "steps": (count, 12),
        "scenarios_per_step": (optional(count), None),
        "sampler": (one_of(SAMPLERS), "epochs"),
        "attempts": (count, 8),
        "max_concurrent": (step, 64),
        "timeout_s": (optional(positive), None),
        "seed": (whole, 0),
        "stop_on": (_texts, []),
    },
    "model": {"base": (_text, _NEEDED)},
    "backend": {"name": (_text, "local")},
    "train": {},
    "eval": {
        "scenarios": (optional(_text), None),
        "every": (count, 4),
        "repeats": (count, 1),
    },
    "budget": {
        "usd": (optional(price), None),
        "per_step": (optional(price), None),
        "per_attempt": (optional(price), None),
        "warn": (price, 0.8),
        "file": (optional(_text), None),
        "min_reward_per_usd": (optional(price), None),
        "unknown_price_usd": (optional(price), None),
    },
}
"""The keys of each section, with their checks and defaults. [backend.NAME] has the options of a
backend and [train] those of a training step, which check them.
"""


@attrs.frozen(kw_only=True)
class Project:
    """A directory with an agent, and the settings of its file: a mapping for each section."""

    directory: Path
    settings: Mapping[str, Mapping[str, Any]]

    def __getitem__(self, section: str) -> Mapping[str, Any]:
        """Return the values of a section."""
        return self.settings[section]

    def backend_options(self) -> dict[str, Any]:
        """Return the options of the chosen backend."""
        found = self["backend"].get(self["backend"]["name"], {})
        return dict(found)

    def budget(self) -> Budget | None:
        """Return what the run may spend; None without a limit. ConfigError for other terms without
        a limit.
        """
        terms = dict(self["budget"])
        if terms["usd"] is None:
            given = [k for k, value in terms.items() if value != KEYS["budget"][k][1]]
            if given:
                raise ConfigError(
                    f"[budget] has {', '.join(given)} and no usd", "Give it, or --max-usd."
                )
            return None
        return Budget(**terms | {"file": self.file("budget", "file")})

    def file(self, section: str, key: str) -> Path | None:
        """Return the path of a file that a key names, in the directory; None without one."""
        name = self.settings[section][key]
        return None if name is None else self.directory / name


def read_project(directory: Path, changes: Sequence[str] = ()) -> Project:
    """Read a project's file, changed by texts such as "train.learning_rate=1e-4".

    Raises ConfigError for a directory without the file, a file of another version, text that is not
    TOML, and a key or value that does not fit, with the nearest key.
    """
    path = directory / FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} has no {FILE}", "`art init DIRECTORY` writes a project to start from."
        )
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    version = read.pop("version", None)
    if version != VERSION:
        raise ConfigError(
            f"{path} has version {version!r}, and this art-core reads version {VERSION}",
            f"Set version = {VERSION} and correct what is then reported; `art init` writes a file "
            "to compare with.",
        )
    for change in changes:
        _apply(change, read)
    return Project(directory=directory, settings=_checked(read, path))


def _apply(change: str, settings: dict[str, Any]) -> None:
    name, equals, text = change.partition("=")
    *sections, key = name.strip().split(".")
    if not (equals and sections and key and all(sections)):
        raise ConfigError(
            f"{change!r} is no SECTION.KEY=VALUE", "Give one like train.learning_rate=3e-5."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{change!r}: {section} is a value, not a section")
    settings[key] = value


def _checked(read: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    for section, values in read.items():
        if section not in KEYS:
            raise ConfigError(f"{path}: {unknown('section', section, KEYS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {section} must be a section, [{section}]")
    return {section: _section(section, read.get(section, {}), path) for section in KEYS}


def _section(section: str, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    keys = KEYS[section]
    for key, value in values.items():
        if key in keys or section == "train" or (section == "backend" and isinstance(value, dict)):
            continue
        raise ConfigError(f"{path}: {unknown(f'key of [{section}]', key, keys)}")
    found = dict(values)
    for key, (check, default) in keys.items():
        if key not in values and default is _NEEDED:
            raise ConfigError(f"{path}: [{section}] needs {key}")
        found.setdefault(key, default)
        check(f"{path}: {section}.{key}", found[key])
    return found
