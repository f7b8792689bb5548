"""A registered model in its backend: weights, checkpoints, endpoint."""
