"""Sinks: their contract, and the delivery of rows from the log."""
