"""ART's second backend for Tinker; here it is the same one."""

from art.tinker_native.backend import TinkerNativeBackend

__all__ = ["TinkerNativeBackend"]
