"""An open run: its state, its end, and its checkpoints."""
