"""Rollouts, training and evaluation at the same time."""
