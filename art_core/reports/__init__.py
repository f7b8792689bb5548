"""Reports on logs that are read back: leaderboards, costs, curves, exports."""
