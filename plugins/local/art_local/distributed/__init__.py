"""Training on several devices: a group of processes, each with a part of the weights."""
