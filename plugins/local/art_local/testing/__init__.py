"""Helpers of the local backend's tests."""
