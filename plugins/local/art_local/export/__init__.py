"""Export of a checkpoint's weights: formats that other programs load, and places to put them."""
