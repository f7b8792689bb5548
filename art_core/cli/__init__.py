"""The commands of `art`, one module per group."""
