"""Runs in the browser: `art board`."""
