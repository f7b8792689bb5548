"""Responses, Messages and Completions over chat completions.

Each protocol is a module with `parse`, `render` and `events`. They only translate JSON, so the
endpoint, the recorder and `art serve` share them: each of these answers chat completions.
"""
