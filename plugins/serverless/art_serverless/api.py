"""The client of the API: one method per request, and errors with a remedy."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import attrs
import httpx2
import orjson

from art_core import ArtError, BackendError, ConfigError, TrajectoryGroup
from art_core.endpoint.listener import pass_by_proxies
from art_serverless.protocol import (
    DEFAULT_URL,
    JOBS,
    MAX_ITEMS,
    MAX_WAIT_S,
    MODELS,
    SFT_JOBS,
    Address,
    Event,
)
from art_serverless.wire import request_body

log = logging.getLogger("art_serverless")

READ_TRIES = 4
MAX_PAUSE_S = 8.0
JSON = {"Content-Type": "application/json"}
_NOT_FOUND, _TOO_MANY, _SERVER_ERROR = (404, 405), 429, 500
_USERS = (400, 401, 403, 409, 413, 422)
_REMEDIES = {
    401: "Is the key the right one, and has it expired? Give api_key=, or set ART_API_KEY or "
    "WANDB_API_KEY.",
    403: "The key may not do this; ask for another one.",
    429: "The quota is used up for now; try again later.",
}


class NotFoundError(BackendError):
    """The service does not have what was asked for (404), or does not support it (405)."""


class UnreachableError(BackendError):
    """The service did not answer: no server listens, the network is down, or it took too long."""


class BusyError(BackendError):
    """The service cannot answer now (429, 5xx); `args[2]` is the pause that it asks for, in s."""

    def __init__(self, problem: str, remedy: str = "", pause_s: float | None = None) -> None:
        Exception.__init__(self, problem, remedy, pause_s)

    def __str__(self) -> str:
        return str(BackendError(*self.args[:2]))


def service_url(given: str | None) -> str:
    """Return the service's URL; ConfigError if it is not an http(s) URL."""
    url = (given or os.environ.get("ART_BASE_URL") or DEFAULT_URL).rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"base_url must be an http(s) URL, got {url!r}")
    return url


def is_wandb(url: str) -> bool:
    """Return whether a URL is one of W&B's."""
    return f".{urlsplit(url).hostname}".endswith(".wandb.ai")


def service_key(url: str, given: str | None) -> str:
    """Return the key for a URL. W&B's key is sent to W&B only.

    Raises ConfigError if there is no key.
    """
    name = "WANDB_API_KEY" if is_wandb(url) else "ART_API_KEY"
    key = given or os.environ.get(name)
    if not key:
        raise ConfigError(
            f"no API key for {url}",
            f"Give api_key=, or set {name}; `art serve` prints the file of its key.",
        )
    return key


@attrs.frozen(kw_only=True)
class ModelRecord:
    """A registered model, as the service describes it."""

    id: str
    address: Address
    base_model: str


@attrs.define(kw_only=True, eq=False)
class Api:
    """Requests to one service. Reads are tried four times, writes once.

    Raises ConfigError for errors that the user can correct (key, option, name), BackendError for
    all others.
    """

    base_url: str
    api_key: str = attrs.field(repr=False)
    timeout_s: float
    _clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = attrs.field(
        factory=WeakKeyDictionary, init=False, repr=False
    )

    async def register(
        self, entity: str | None, project: str, name: str, base_model: str, *, timeout_s: float
    ) -> ModelRecord:
        """Register a model, or find the one that is registered already."""
        fields = {
            "entity": entity,
            "project": project,
            "name": name,
            "base_model": base_model,
            "return_existing": True,
        }
        answer = await self._post(MODELS, _json(fields), timeout_s=timeout_s)
        address = Address(
            entity=str(answer.get("entity") or entity or ""),
            project=str(answer.get("project") or project),
            name=str(answer.get("name") or name),
        )
        return ModelRecord(
            id=_text(answer, "id"),
            address=address,
            base_model=str(answer.get("base_model") or base_model),
        )

    async def checkpoints(self, model_id: str) -> list[int]:
        """Return the steps of the checkpoints at the service, oldest first."""
        path = f"{MODELS}/{model_id}/checkpoints"
        items = await self._pages(path, {"order": "asc"})
        return sorted(int(item["step"]) for item in items)

    async def newest_step(self, model_id: str) -> int:
        """Return the step of the newest checkpoint; 0 if there is none."""
        page = await self._get(
            f"{MODELS}/{model_id}/checkpoints", {"limit": 1, "order": "desc"}, self.timeout_s
        )
        return max((int(item["step"]) for item in _data(page)), default=0)

    async def delete_checkpoints(self, model_id: str, steps: Sequence[int]) -> list[int]:
        """Delete checkpoints; return the deleted steps."""
        path = f"{MODELS}/{model_id}/checkpoints"
        answer = await self._send("DELETE", path, _json({"steps": list(steps)}))
        missing = set(answer.get("not_found_steps") or ())
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

    async def submit_sft(
        self, model_id: str, batches: Sequence[TrajectoryGroup], config: Mapping[str, Any], *,
        key: str,
    ) -> str:  # fmt: skip
        """Have the service run a step of supervised fine-tuning; return the job's id. Each group is
        a batch.
        """
        body = request_body({"model_id": model_id, "config": dict(config)}, batches)
        return _text(await self._post(SFT_JOBS, body, headers={"Idempotency-Key": key}), "id")

    async def find_job(self, model_id: str, key: str) -> str | None:
        """Return the job that a request with that key made; None if the service does not know."""
        query = {"model_id": model_id, "idempotency_key": key}
        try:
            found = _data(await self._get(JOBS, query, self.timeout_s))
        except (NotFoundError, ConfigError):
            return None
        return _text(found[0], "id") if found else None

    async def events(self, job_id: str, after: str | None) -> list[Event]:
        """Return a job's events after one. If there are none, the server may wait for the next."""
        query: dict[str, Any] = {"limit": MAX_ITEMS, "wait": MAX_WAIT_S}
        page = await self._get(
            f"{JOBS}/{job_id}/events",
            query | ({"after": after} if after else {}),
            self.timeout_s + MAX_WAIT_S,
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
            cursor = {"after": after} if after else {}
            page = await self._get(path, {**query, "limit": MAX_ITEMS, **cursor}, self.timeout_s)
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
                wanted = error.args[2] if isinstance(error, BusyError) else None
                pause = min(0.25 * 2**attempt if wanted is None else wanted, MAX_PAUSE_S)
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
        return _checked(answer, self.base_url, f"{method} {path}")

    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            pass_by_proxies()  # a proxy must not get the key of an `art serve` on this machine
            self._clients[loop] = httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self.api_key}"}
            )
        return self._clients[loop]


def _json(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields)


def _data(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = page.get("data")
    if not isinstance(items, list):
        raise BackendError(f"the service's answer is not a page of items: {str(page)[:200]}")
    return items


def _text(value: Mapping[str, Any], name: str) -> str:
    if not value.get(name):
        raise BackendError(f"the service's answer has no {name!r}: {str(dict(value))[:200]}")
    return str(value[name])


def _checked(answer: httpx2.Response, url: str, what: str) -> dict[str, Any]:
    """Return the object in the answer to the request `what`; raise the error of its status."""
    status = answer.status_code
    if status < 300:
        return _object(answer, url, what) if answer.content else {}
    raise _failure(status, answer, url, what)


def _object(answer: httpx2.Response, url: str, what: str) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if isinstance(value, dict):
        return value
    kind = answer.headers.get("content-type", "no content type")
    raise BackendError(
        f"{url} answered {what} with {kind}, not with JSON: {answer.text[:80]!r}",
        "Does base_url end in /v1, and does a proxy or a login page stand in between?",
    )


def _failure(status: int, answer: httpx2.Response, url: str, what: str) -> ArtError:
    problem = f"{url} answered {what} with {status}: {_message(answer)}"
    if status == _TOO_MANY or status >= _SERVER_ERROR:
        remedy = _REMEDIES.get(status, "The service failed; its own log has details.")
        return BusyError(problem, remedy, _pause(answer))
    if status in _NOT_FOUND:
        return NotFoundError(problem)
    kind = ConfigError if status in _USERS else BackendError
    return kind(problem, _REMEDIES.get(status, ""))


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
