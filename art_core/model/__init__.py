"""Models, and the contract of a backend."""
