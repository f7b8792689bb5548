"""Rules that read the log of a run and report what goes wrong in it."""
