"""What it cost: usage, prices and the decorator that joins them."""
