"""`art serve`: any installed backend over the same API, in order of the walk: start, app, work."""
