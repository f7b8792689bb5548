"""Rewards that a judge gives."""

from art.rewards.ruler import ruler, ruler_score_group

__all__ = ["ruler", "ruler_score_group"]
