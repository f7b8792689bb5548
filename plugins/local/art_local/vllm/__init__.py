"""vLLM as the engine: a server process in an environment of its own, spoken to over HTTP."""
