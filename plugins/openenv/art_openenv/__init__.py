"""Environments that OpenEnv serves, and OpenEnv's training traces."""

from art_openenv.environment import OpenEnvEnvironment
from art_openenv.trace import from_training_trace, to_training_trace

__all__ = ["OpenEnvEnvironment", "from_training_trace", "to_training_trace"]
