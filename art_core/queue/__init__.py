"""The durable queue of a run's attempts."""
