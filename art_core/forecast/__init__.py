"""What a run will cost: intervals of what comes next, from what was used so far."""
