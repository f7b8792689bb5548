"""Agents of LangGraph and LangChain: their chat model is the trained one, and is recorded."""

from art_langgraph.rollout import init_chat_model, wrap_rollout

__all__ = ["init_chat_model", "wrap_rollout"]
