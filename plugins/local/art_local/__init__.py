"""Train and serve LoRA adapters on this machine: the backend `art.backend("local")`."""
