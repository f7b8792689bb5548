"""Task directories of Harbor as environments."""

from art_harbor.environment import HarborEnvironment
from art_harbor.scenarios import harbor_scenarios
from art_harbor.task import HarborTask

__all__ = ["HarborEnvironment", "HarborTask", "harbor_scenarios"]
