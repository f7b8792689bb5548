"""What Tinker says that a run cost: its hourly usage, found again by what sessions are tagged with.

The figures lag by hours, and a completed day is priced when its invoice is: an estimate is there at
once, the bill later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from art_core import Bill, ConfigError
from art_tinker.sdk import Connection, settled, tinker
from art_tinker.store import Identity

LONGEST = timedelta(days=14)
TIMEOUT_S = 120.0
SOURCES = {
    "training": "tinker_train",
    "sampling_prefill": "tinker_prefill",
    "sampling_sample": "tinker_sample",
    "checkpoint": "tinker_checkpoints",
    "storage": "tinker_storage",
}


def bill_of(run_dir: Path) -> Bill:
    """Ask for a run's bill. Needs TINKER_API_KEY of somebody who may see the billing.

    Raises ConfigError for a run that was never at Tinker, or an SDK that can't ask.
    """
    identity = Identity.known(run_dir)
    if identity is None:
        raise ConfigError(f"{run_dir} never was at Tinker: it has no tinker.json")
    connection = Connection(base_url=identity.base_url)

    async def asked() -> list[Any]:
        since = datetime.fromisoformat(identity.since)
        return [
            await connection.call(
                lambda start=start, end=end: settled(  # type: ignore[misc]
                    _admin(connection).get_billing_usage(start, end)
                ),
                TIMEOUT_S,
                "asking for the bill",
            )
            for start, end in windows(since, datetime.now(UTC))
        ]

    return summed(asyncio.run(asked()), identity.run_id)


def windows(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield whole hours from a time to another, in pieces as long as the service takes."""
    start = since.replace(minute=0, second=0, microsecond=0)
    end = until.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    while start < end:
        stop = min(start + LONGEST, end)
        yield start, stop
        start = stop


def summed(answers: Iterable[Any], run_id: str) -> Bill:
    """Add up the events of a run's sessions by leaf; say how many have no price yet."""
    usd: dict[str, float] = {}
    unpriced, newest = 0, None
    for answer in answers:
        for event in answer.data:
            leaf = _leaf(event, answer.sessions, run_id)
            if leaf is None:
                continue
            newest = max(newest or event.bucket_end, event.bucket_end)
            # to save a checkpoint is counted, and never has a price: to store it has
            unpriced += event.estimated_cost_usd is None and event.event_info.type != "checkpoint"
            usd[leaf] = usd.get(leaf, 0.0) + (event.estimated_cost_usd or 0.0)
    notes = [f"usage until {newest:%Y-%m-%d %H:%M} UTC" if newest else "no usage is billed yet"]
    if unpriced:
        notes.append(f"{unpriced} amounts have no price yet: ask again when the day is invoiced")
    return Bill(usd=usd, notes=tuple(notes))


def _leaf(event: Any, sessions: Any, run_id: str) -> str | None:
    session = sessions.get(event.session_id)
    tags = (session.user_metadata or {}) if session is not None else {}
    if tags.get("art_run_id") != run_id:
        return None
    kind = event.event_info.type
    return f"{tags.get('art_split', 'train')}/{SOURCES.get(kind, f'tinker_{kind}')}"


def _admin(connection: Connection) -> Any:
    sdk = tinker()
    if not hasattr(sdk, "AdminClient"):
        raise ConfigError(
            "this SDK can't ask for the bill: it has no AdminClient", "pip install -U tinker"
        )
    return sdk.AdminClient(**connection.options())
