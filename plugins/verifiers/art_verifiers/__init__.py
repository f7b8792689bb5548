"""Environments of the verifiers package as rollouts."""

from art_verifiers.rollout import verifiers_rollout, verifiers_scenarios

__all__ = ["verifiers_rollout", "verifiers_scenarios"]
