"""Hooks: their specifications, the host that finds plugins, and the core's own implementations."""
