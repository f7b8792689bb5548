"""A vLLM plugin that computes LoRA on CPU with one matrix product an adapter."""
