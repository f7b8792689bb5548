"""Errors, files, progress and numbers; imports nothing else of art_core."""
