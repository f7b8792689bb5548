"""Evaluation: models on fixed scenarios, with intervals, costs, and comparisons that stop early."""
