"""`art launch`: machines of a cloud or of Kubernetes, with `art serve` or a Ray cluster on them."""
