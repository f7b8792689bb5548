"""Texts for clients: the server's paths and secrets are replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from art_core.base.errors import without_secrets
from art_core.endpoint.errors import RequestError

DIRECTORY = "<directory of art serve>"


@attrs.frozen
class PrivatePaths:
    """Paths of this machine, each with the word that replaces it in texts for clients."""

    words: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, directory: Path, base_models: Mapping[str, str]) -> PrivatePaths:
        """Return the paths of the server's directory, of base models and of the home directory."""
        words = {form: name for name, path in base_models.items() for form in _forms(path)}
        words |= dict.fromkeys(_forms(str(directory)), DIRECTORY)
        words |= dict.fromkeys(_forms(str(Path.home())), "~")
        longest_first = sorted(words.items(), key=lambda word: -len(word[0]))
        return cls(tuple((path, name) for path, name in longest_first if path != name))

    def hide(self, text: str) -> str:
        """Return a text without these paths."""
        for path, word in self.words:
            text = text.replace(path, word)
        return text

    def hide_all(self, text: str) -> str:
        """Return a text without these paths and without secrets."""
        return without_secrets(self.hide(text))

    def of_error(self, error: RequestError) -> RequestError:
        """Return an error without these paths; an error of the server also without secrets."""
        _, message, param, code = error.args
        hide = self.hide_all if error.status >= 500 else self.hide
        return RequestError(error.status, hide(str(message)), param, code)


def _forms(path: str) -> set[str]:
    """Return the ways to write a path; none for a single word, which may have other meanings."""
    expanded = Path(path).expanduser()
    forms = {path, *map(str, (expanded, expanded.absolute(), expanded.resolve()))}
    return {form for form in forms if os.sep in form and form != os.sep}
