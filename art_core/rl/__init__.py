"""RL mathematics that all backends share, without torch."""
