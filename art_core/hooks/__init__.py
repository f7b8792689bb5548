"""Who else joins in: the hooks, the host that finds plugins, and the core's own implementations."""
