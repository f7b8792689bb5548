"""The bill of a run: Tinker's hourly usage, found by the tags of the run's sessions.

The figures lag by hours, and a day gets its prices with its invoice. The run's own rows have
estimates at once.
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

MAX_SPAN = timedelta(days=14)
TIMEOUT_S = 120.0
SOURCES = {
    "training": "tinker_train",
    "sampling_prefill": "tinker_prefill",
    "sampling_sample": "tinker_sample",
    "checkpoint": "tinker_checkpoints",
    "storage": "tinker_storage",
}


def bill_of(run_dir: Path) -> Bill:
    """Return a run's bill. TINKER_API_KEY must belong to a user with access to the billing.

    Raises ConfigError for a run that was never at Tinker, and for an SDK without billing.
    """
    identity = Identity.known(run_dir)
    if identity is None:
        raise ConfigError(f"{run_dir} was never at Tinker: it has no tinker.json")
    connection = Connection(base_url=identity.base_url)

    async def usage() -> list[Any]:
        since = datetime.fromisoformat(identity.since)
        return [
            await connection.call(
                lambda start=start, end=end: settled(  # type: ignore[misc]
                    _admin(connection).get_billing_usage(start, end)
                ),
                TIMEOUT_S,
                "asking for the bill",
            )
            for start, end in spans(since, datetime.now(UTC))
        ]

    return summed(asyncio.run(usage()), identity.run_id)


def spans(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield the whole hours between two times, in spans that the service accepts."""
    start = since.replace(minute=0, second=0, microsecond=0)
    end = until.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    while start < end:
        stop = min(start + MAX_SPAN, end)
        yield start, stop
        start = stop


def summed(answers: Iterable[Any], run_id: str) -> Bill:
    """Return the sums of the events of a run's sessions, by leaf, and notes on missing prices."""
    usd: dict[str, float] = {}
    unpriced, newest = 0, None
    for answer in answers:
        for event in answer.data:
            leaf = _leaf(event, answer.sessions, run_id)
            if leaf is None:
                continue
            newest = max(newest or event.bucket_end, event.bucket_end)
            # Saving a checkpoint is an event without a price; storing it has one.
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
            "this SDK cannot read the bill: it has no AdminClient", "pip install -U tinker"
        )
    return sdk.AdminClient(**connection.options())
