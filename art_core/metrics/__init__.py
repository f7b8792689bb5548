"""What was measured: names, sums, rows and the log that keeps them."""
