"""art-tinker: trains and samples with Thinking Machines' Tinker."""
