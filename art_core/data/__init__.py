"""Messages and choices, trajectories, groups of them, and their files."""
