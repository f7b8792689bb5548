"""ART's path of these names."""

from art.dev import OpenAIServerConfig, ServerArgs

__all__ = ["OpenAIServerConfig", "ServerArgs"]
