"""The local backend with Unsloth's models and kernels: `art.backend("unsloth")`."""
