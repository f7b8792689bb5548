"""Choices, at the path by which other programs import them."""

from art_core.data.trajectory import is_choice, tokens_of

__all__ = ["is_choice", "tokens_of"]
