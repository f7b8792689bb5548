"""Costs: the price book, the ledger of a run and the decorator for API calls."""
