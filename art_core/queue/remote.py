"""RemoteQueue: the queue of a run on another machine, over the routes of its gateway."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import orjson

from art_core.base.errors import BackendError, ConfigError, RolloutFailure
from art_core.client.openai_client import openai_package
from art_core.data.outcome import Outcomes
from art_core.data.trajectory import Trajectory
from art_core.queue.paid import Paid
from art_core.queue.payload import outcomes_of, to_json
from art_core.queue.values import Lease, Leased, Reply, Scenario

log = logging.getLogger("art_core")

PATIENCE_S, FIRST_WAIT_S, LONGEST_WAIT_S = 900.0, 0.25, 15.0
TIMEOUT_S = 120.0
_NOT_LISTED = frozenset({"base_url", "model_name", "api_key", "scenario"})


class RemoteQueue:
    """A queue at the URL of a gateway, for workers; a context manager.

    A server that does not answer, or whose disk is full, is asked again, with pauses that grow to
    15 seconds, for `patience_s` seconds; then BackendError is raised. `reached` are the base URL
    and the name of the model, as the server gave them with the newest lease.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        patience_s: float = PATIENCE_S,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key, self._patience_s, self._sleep = api_key, patience_s, sleep
        self._random = random.Random()
        self.reached = "", ""
        self._http: Any = None

    async def __aenter__(self) -> Self:
        make = openai_package().DefaultAsyncHttpxClient
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self._http = make(base_url=self._url, headers=headers, timeout=TIMEOUT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def lease(
        self, worker: str, n: int = 1, *, version: str = "", wait_s: float = 0.0
    ) -> Leased:
        """Return up to `n` attempts to make (see `WorkQueue`)."""
        asked = {"worker": worker, "n": n, "version": version, "wait_s": wait_s}
        answer = await self._ask("lease", orjson.dumps(asked))
        for given in answer["leases"]:
            self.reached = given["base_url"], given["model_name"]
        return Leased(
            leases=tuple(_lease_of(given) for given in answer["leases"]),
            finished=answer["finished"],
        )

    async def submit(
        self,
        key: str,
        outcome: Trajectory | RolloutFailure | Outcomes,
        *,
        step: int | None = None,
        paid: Sequence[Paid] = (),
    ) -> Reply:
        """Store an attempt (see `WorkQueue`)."""
        stored = to_json(outcomes_of(outcome))
        calls = [each.to_dict() for each in paid]
        head = orjson.dumps({"key": key, "step": step, "paid": calls})[:-1]
        answer = await self._ask("submit", b'%b,"outcome":%b}' % (head, stored))
        reply: Reply = answer["reply"]
        return reply

    async def renew(self, key: str) -> bool:
        """Begin a lease's term again (see `WorkQueue`)."""
        return bool((await self._ask("renew", orjson.dumps({"key": key})))["renewed"])

    async def give_back(self, key: str, *, paid: Sequence[Paid] = ()) -> bool:
        """End a lease without an attempt (see `WorkQueue`)."""
        body = orjson.dumps({"key": key, "paid": [each.to_dict() for each in paid]})
        return bool((await self._ask("return", body))["returned"])

    async def _ask(self, route: str, body: bytes) -> dict[str, Any]:
        """Post a request until it is answered: each may be sent twice."""
        end, wait = time.monotonic() + self._patience_s, FIRST_WAIT_S
        while True:
            try:
                answer = await self._http.post(f"/queue/{route}", content=body)
                problem = None if answer.status_code == 200 else _problem(answer)
            except Exception as error:
                answer, problem = None, f"{type(error).__name__}: {error}"
            if problem is None:
                found: dict[str, Any] = answer.json()
                return found
            if answer is not None and answer.status_code < 500:
                raise ConfigError(f"{self._url} refuses to {route}: {problem}")
            if time.monotonic() > end:
                raise BackendError(
                    f"{self._url} did not answer for {self._patience_s:g} s: {problem}",
                    "Start the server again, then this worker.",
                )
            log.warning("%s: %s; asking again in %.1f s", self._url, problem, wait)
            await self._sleep(wait * self._random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT_S)


def _problem(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return f"HTTP {answer.status_code}"


def _lease_of(given: dict[str, Any]) -> Lease:
    plain = {name: value for name, value in given.items() if name not in _NOT_LISTED}
    return Lease(scenario=Scenario(**given["scenario"]), **plain)
