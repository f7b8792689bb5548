"""Where rows go: the contract of a sink, and its delivery from the log."""
