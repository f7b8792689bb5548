"""Images in prompts: read, processed, and turned into embeddings of their tokens."""
