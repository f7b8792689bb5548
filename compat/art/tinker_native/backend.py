"""ART's second backend for Tinker; here it is the same one."""

from art.tinker.backend import TinkerBackend


class TinkerNativeBackend(TinkerBackend):
    """Trains and samples at Tinker."""
