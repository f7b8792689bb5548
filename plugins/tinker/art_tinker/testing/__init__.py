"""A Tinker service in this process, for tests."""
