"""Errors, files, progress and numbers. Imports no other part of art_core."""
