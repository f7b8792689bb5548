"""ART's path of the serverless backend."""

from art.serverless.backend import ServerlessBackend

__all__ = ["ServerlessBackend"]
