"""Environments: tasks of several turns, with tools, that any model can be played against."""
