"""What flows: messages and choices, trajectories, groups of them, and their files."""
