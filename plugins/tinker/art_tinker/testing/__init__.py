"""For tests: a Tinker service in this process."""
