"""The log of a run: rows, the run directory, the current line and its readers."""
