"""The client's half of the wire: one method a request, errors that say what to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import httpx2
import orjson

from art_core import BackendError, ConfigError, TrajectoryGroup
from art_core.endpoint.proxies import pass_by_proxies
from art_serverless.answers import BusyError, NotFoundError, UnreachableError, checked
from art_serverless.protocol import JOBS, LONGEST_WAIT_S, MODELS, MOST_ITEMS, Address, Event
from art_serverless.wire import request_body

log = logging.getLogger("art_serverless")

READ_TRIES = 4
LONGEST_PAUSE_S = 8.0
JSON = {"Content-Type": "application/json"}


@attrs.frozen(kw_only=True)
class RemoteModel:
    """A model as the service knows it."""

    id: str
    address: Address
    base_model: str


@attrs.define(kw_only=True, eq=False)
class Api:
    """Requests to one service. Reads are tried four times, writes once.

    Raises ConfigError for what the user can set right (key, option, name), BackendError for the
    rest.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    timeout_s: float
    _clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = attrs.field(
        factory=WeakKeyDictionary, init=False, repr=False
    )

    async def register(
        self, entity: str | None, project: str, name: str, base_model: str, *, timeout_s: float
    ) -> RemoteModel:
        """Register a model, or find the one that is registered already."""
        fields = {
            "entity": entity,
            "project": project,
            "name": name,
            "base_model": base_model,
            "return_existing": True,
        }
        said = await self._post(MODELS, request_body_of(fields), timeout_s=timeout_s)
        address = Address(
            entity=str(said.get("entity") or entity or ""),
            project=str(said.get("project") or project),
            name=str(said.get("name") or name),
        )
        return RemoteModel(
            id=_text(said, "id"),
            address=address,
            base_model=str(said.get("base_model") or base_model),
        )

    async def checkpoints(self, model_id: str) -> list[int]:
        """Return the steps whose weights the service keeps, oldest first."""
        path = f"{MODELS}/{model_id}/checkpoints"
        items = await self._pages(path, {"order": "asc"})
        return sorted(int(item["step"]) for item in items)

    async def newest_step(self, model_id: str) -> int:
        """Return the step of the newest checkpoint; 0 when there is none."""
        page = await self._get(
            f"{MODELS}/{model_id}/checkpoints", {"limit": 1, "order": "desc"}, self.timeout_s
        )
        return max((int(item["step"]) for item in _data(page)), default=0)

    async def delete_checkpoints(self, model_id: str, steps: Sequence[int]) -> list[int]:
        """Delete checkpoints; return the steps that are gone by it."""
        said = await self._send(
            "DELETE", f"{MODELS}/{model_id}/checkpoints", request_body_of({"steps": list(steps)})
        )
        missing = set(said.get("not_found_steps") or ())
        return [step for step in steps if step not in missing]

    async def submit(
        self,
        model_id: str,
        groups: Sequence[TrajectoryGroup],
        config: Mapping[str, Any],
        *,
        key: str,
    ) -> str:
        """Have the service run a training step; return the job's id. `key` names the request."""
        body = request_body({"model_id": model_id, "experimental_config": dict(config)}, groups)
        return _text(await self._post(JOBS, body, headers={"Idempotency-Key": key}), "id")

    async def find_job(self, model_id: str, key: str) -> str | None:
        """Return the job that a request of that key made; None when the service can't tell."""
        query = {"model_id": model_id, "idempotency_key": key}
        try:
            found = _data(await self._get(JOBS, query, self.timeout_s))
        except (NotFoundError, ConfigError):
            return None
        return _text(found[0], "id") if found else None

    async def events(self, job_id: str, after: str | None) -> list[Event]:
        """Return what a job told after an event; a server that can, waits for something to tell."""
        query: dict[str, Any] = {"limit": MOST_ITEMS, "wait": LONGEST_WAIT_S}
        page = await self._get(
            f"{JOBS}/{job_id}/events",
            query | ({"after": after} if after else {}),
            self.timeout_s + LONGEST_WAIT_S,
        )
        return [
            Event(id=_text(item, "id"), type=_text(item, "type"), data=item.get("data") or {})
            for item in _data(page)
        ]

    async def close(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _pages(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            asked = {**query, "limit": MOST_ITEMS} | ({"after": after} if after else {})
            page = await self._get(path, asked, self.timeout_s)
            found = _data(page)
            items += found
            if not found or not page.get("has_more"):
                return items
            after = _text(found[-1], "id")

    async def _get(self, path: str, query: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        for attempt in range(READ_TRIES):
            try:
                return await self._send("GET", path, query=query, timeout_s=timeout_s)
            except (BusyError, UnreachableError) as error:
                if attempt == READ_TRIES - 1:
                    raise
                asked = error.args[2] if isinstance(error, BusyError) else None
                pause = min(asked if asked is not None else 0.25 * 2**attempt, LONGEST_PAUSE_S)
                log.info("%s; asking again in %.1f s", error, pause)
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _post(
        self,
        path: str,
        body: bytes,
        *,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        return await self._send("POST", path, body, timeout_s=timeout_s, headers=headers)

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        timeout = self.timeout_s if timeout_s is None else timeout_s
        try:
            answer = await self._client().request(
                method,
                self.base_url + path,
                content=body,
                params=dict(query or {}),
                headers={**JSON, **(headers or {})},
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            )
        except httpx2.TimeoutException as error:
            raise UnreachableError(
                f"{self.base_url} did not answer {method} {path} within {timeout:g} s"
            ) from error
        except httpx2.HTTPError as error:
            raise UnreachableError(
                f"cannot reach {self.base_url}: {type(error).__name__} {error}",
                "Is the address right, and does `art serve` run there?",
            ) from error
        return checked(answer, self.base_url, f"{method} {path}")

    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            pass_by_proxies()  # no proxy gets the key of an `art serve` on this machine
            self._clients[loop] = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self.api_key}"}
            )
        return self._clients[loop]


def request_body_of(fields: Mapping[str, Any]) -> bytes:
    """Return plain fields as a request's JSON."""
    return orjson.dumps(fields)


def _data(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = page.get("data")
    if not isinstance(items, list):
        raise BackendError(f"the service answered with no page of items: {str(page)[:200]}")
    return items


def _text(value: Mapping[str, Any], name: str) -> str:
    if not value.get(name):
        raise BackendError(f"the service's answer has no {name!r}: {str(dict(value))[:200]}")
    return str(value[name])
