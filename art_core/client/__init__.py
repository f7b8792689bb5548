"""The OpenAI client, and recording for agents that bring their own."""
