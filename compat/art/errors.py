"""The base of ART's errors. Errors of art-core are `art_core.ArtError`."""

from art_core import ArtError as ARTError

__all__ = ["ARTError"]
