"""Reports made from logs: leaderboards, costs, curves, exports."""
