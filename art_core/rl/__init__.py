"""RL maths that every backend shares, without torch: advantages, sequences, loss presets,
options.
"""
