"""Memory of answered Responses, for `previous_response_id`: the newest ones, within limits."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs

from art_core.endpoint.errors import RequestError, shown
from art_core.endpoint.strict_json import json_bytes

MAX_STORED, MAX_STORED_BYTES = 1_000, 64 << 20


@attrs.frozen
class StoredResponse:
    """A response, and the chat messages up to its answer, without instructions."""

    body: Mapping[str, Any]
    messages: tuple[Mapping[str, Any], ...]


class StoredResponses:
    """Keeps the newest responses of one key, or of one attempt, by their id. Safe under threads."""

    def __init__(self, max_count: int = MAX_STORED, max_bytes: int = MAX_STORED_BYTES) -> None:
        self._max_count, self._max_bytes = max_count, max_bytes
        self._kept: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, stored: StoredResponse) -> None:
        """Keep a response; forget the oldest ones that are too many."""
        size = len(json_bytes([stored.body, stored.messages]))
        with self._lock:
            self._kept[stored.body["id"]] = stored, size
            self._bytes += size
            while len(self._kept) > self._max_count or self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1]

    def get(self, response_id: str, *, previous: bool = False) -> StoredResponse:
        """Return a response; RequestError (404) if it is not kept, with `previous` for the
        parameter `previous_response_id`.
        """
        with self._lock:
            found = self._kept.get(response_id)
        if found is None:
            raise _unknown(response_id, previous=previous)
        return found[0]

    def item(self, where: str, item_id: Any) -> Mapping[str, Any]:
        """Return an output item of a kept response; RequestError (404) if none of them has it."""
        with self._lock:
            kept = [stored.body for stored, _ in reversed(self._kept.values())]
        for item in (item for body in kept for item in body["output"]):
            if item["id"] == item_id:
                found: Mapping[str, Any] = item
                return found
        reason = "not found: it belongs to no stored response; send the item itself"
        message = f"Item with id {shown(item_id)} {reason}."
        raise RequestError(404, message, where, "not_found")

    def delete(self, response_id: str) -> None:
        """Forget a response, if it is kept."""
        with self._lock:
            self._bytes -= self._kept.pop(response_id, (None, 0))[1]


def _unknown(response_id: str, *, previous: bool) -> RequestError:
    if previous:
        message = f"Previous response with id {shown(response_id)} not found."
        return RequestError(404, message, "previous_response_id", "previous_response_not_found")
    message = f"Response with id {shown(response_id)} not found."
    return RequestError(404, message, "response_id", "not_found")
