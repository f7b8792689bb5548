"""Langfuse as a sink of art-core."""

from __future__ import annotations

from art_langfuse.plugin import langfuse_sink

__all__ = ["langfuse_sink"]
