"""Dated price tables and the default price book."""
