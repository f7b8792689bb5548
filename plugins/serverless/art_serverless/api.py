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

from art_core import ArtError, BackendError, ConfigError, TrajectoryGroup
from art_serverless.protocol import JOBS, LONGEST_WAIT_S, MODELS, MOST_ITEMS, Address, Event
from art_serverless.wire import request_body

log = logging.getLogger("art_serverless")

READ_TRIES = 4
LONGEST_PAUSE_S = 8.0
_NOT_FOUND, _TOO_MANY, _SERVER_ERROR = 404, 429, 500
_USERS = (400, 401, 403, 409, 413, 422)
_REMEDIES = {
    401: "Is the key the right one, and has it expired? Give api_key=, or set ART_API_KEY or "
    "WANDB_API_KEY.",
    403: "The key may not do this; ask for another one.",
    429: "The quota is used up for now; try again later.",
}
JSON = {"Content-Type": "application/json"}


class NotFoundError(BackendError):
    """Something that the service does not have (404)."""


class UnreachableError(BackendError):
    """No answer came: nobody listens, the network is down, or it took too long."""


class _BusyError(BackendError):
    """The service asks to come back later (429, 5xx); `args[2]` is after how many seconds."""

    def __init__(self, problem: str, remedy: str = "", pause_s: float | None = None) -> None:
        Exception.__init__(self, problem, remedy, pause_s)

    def __str__(self) -> str:
        return str(BackendError(*self.args[:2]))


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

    async def unregister(self, model_id: str) -> None:
        """Delete a model and its checkpoints from the service."""
        await self._send("DELETE", f"{MODELS}/{model_id}")

    async def log(self, model_id: str, groups: Sequence[TrajectoryGroup], split: str) -> None:
        """Have the service keep trajectories."""
        body = request_body({"model_id": model_id, "split": split}, groups)
        await self._post(f"{MODELS}/{model_id}/log", body)

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
            except (_BusyError, UnreachableError) as error:
                if attempt == READ_TRIES - 1:
                    raise
                asked = error.args[2] if isinstance(error, _BusyError) else None
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
        return self._checked(answer, f"{method} {path}")

    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self.api_key}"}
            )
        return self._clients[loop]

    def _checked(self, answer: httpx2.Response, what: str) -> dict[str, Any]:
        status = answer.status_code
        if status < 300:
            return self._object(answer, what) if answer.content else {}
        raise self._failure(status, answer, what)

    def _object(self, answer: httpx2.Response, what: str) -> dict[str, Any]:
        try:
            value = answer.json()
        except ValueError:
            value = None
        if isinstance(value, dict):
            return value
        kind = answer.headers.get("content-type", "no content type")
        raise BackendError(
            f"{self.base_url} answered {what} with {kind}, not with JSON: {answer.text[:80]!r}",
            "Does base_url end in /v1, and does a proxy or a login page stand in between?",
        )

    def _failure(self, status: int, answer: httpx2.Response, what: str) -> ArtError:
        said = f"{self.base_url} answered {what} with {status}: {_message(answer)}"
        if status == _TOO_MANY or status >= _SERVER_ERROR:
            remedy = _REMEDIES.get(status, "The service failed; its own log says more.")
            return _BusyError(said, remedy, _pause(answer))
        if status == _NOT_FOUND:
            return NotFoundError(said)
        kind = ConfigError if status in _USERS else BackendError
        return kind(said, _REMEDIES.get(status, ""))


def request_body_of(fields: Mapping[str, Any]) -> bytes:
    """Return plain fields as a request's JSON."""
    return orjson.dumps(fields)


def _message(answer: httpx2.Response) -> str:
    try:
        value = answer.json()
    except ValueError:
        return answer.text[:200]
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("message"):
        return str(error["message"])
    return str(error or value)[:500]


def _pause(answer: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _data(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = page.get("data")
    if not isinstance(items, list):
        raise BackendError(f"the service answered with no page of items: {str(page)[:200]}")
    return items


def _text(value: Mapping[str, Any], name: str) -> str:
    if not value.get(name):
        raise BackendError(f"the service's answer has no {name!r}: {str(dict(value))[:200]}")
    return str(value[name])
