"""Budgets: what a run, an attempt or other code may spend, reserved before it is spent."""
