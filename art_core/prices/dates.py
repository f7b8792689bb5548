"""Dates of price lists: a list's prices are old 60 days after it was copied."""

from __future__ import annotations

from datetime import date

OLD_AFTER_DAYS = 60


def day_of(as_of: str) -> date:
    """Return a day, or the first one of a month such as "2026-03"; ValueError for other texts."""
    return date.fromisoformat(f"{as_of}-01" if len(as_of) == len("2026-03") else as_of)


def is_old(as_of: object, on: date) -> bool:
    """Return whether a price of a list from `as_of` is old on a day; False without a date."""
    if not isinstance(as_of, str):
        return False
    try:
        return (on - day_of(as_of)).days > OLD_AFTER_DAYS
    except ValueError:
        return False
