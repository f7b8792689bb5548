"""A vLLM plugin for CPU: LoRA by one matrix product an adapter; seeds with prompts in parts."""
