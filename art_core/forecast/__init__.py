"""Forecasts: intervals of what comes next, from what was used so far."""
