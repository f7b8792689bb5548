"""The phases of training, each with an optimizer state of its own, and the files of the states."""

RL, SFT = "rl", "sft"
OPTIMIZERS = {RL: "optimizer.safetensors", SFT: "optimizer_sft.safetensors"}
"""Files of a state that one process wrote."""
PARTS = "shard-*.safetensors"
"""Files of the states and the adapter that ranks wrote, a part each."""
