"""What a log says when it is read back: summaries, leaderboards, cost reports, exports."""
