"""Trackio as a sink of art-core."""

from __future__ import annotations

from art_trackio.plugin import trackio_sink

__all__ = ["trackio_sink"]
