"""Base models: found by name, loaded, placed on a device."""

from art_local.models.find import cache_directory, resolve_base_model

__all__ = ["cache_directory", "resolve_base_model"]
