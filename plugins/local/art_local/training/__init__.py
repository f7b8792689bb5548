"""One GRPO step on this machine: rows become micro-batches, log-probs, a loss and new weights."""
