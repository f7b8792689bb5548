"""Rows of art-core on an Argus leaderboard: a sink that is a mapping and one POST."""

from __future__ import annotations

from art_argus.plugin import argus_sink, stop_requested

__all__ = ["argus_sink", "stop_requested"]
