"""ART's path of `track_api_cost`."""

from art.metrics import track_api_cost

__all__ = ["track_api_cost"]
