"""`art serve`: any installed backend over the same API. Read start, app, routes, work."""
