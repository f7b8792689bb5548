"""ART's path of the Tinker backend."""

from art.tinker.backend import TinkerBackend

__all__ = ["TinkerBackend"]
