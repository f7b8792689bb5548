"""ART's path of these names."""

from art.dev import EngineArgs

__all__ = ["EngineArgs"]
