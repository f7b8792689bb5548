"""Beside the rollout: an endpoint for agents that bring their own client, and the trajectory that
what passes through it becomes.
"""
