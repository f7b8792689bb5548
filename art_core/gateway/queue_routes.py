"""The routes by which workers lease, renew and submit attempts, in Starlette. Import it only to
serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import attrs
from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.base.errors import ConfigError, HistoryError, RolloutFailure, without_secrets
from art_core.base.numbers import number_or_nan
from art_core.data.outcome import Outcomes
from art_core.data.trajectory import Trajectory
from art_core.endpoint.errors import RequestError, bad_parameter, request_error
from art_core.endpoint.http import Handler, check_key, guarded, json_body, json_response
from art_core.gateway.attempts import Ending
from art_core.gateway.leases import LeaseRecordings
from art_core.gateway.routes import Check, ending_of
from art_core.queue.paid import paid_from
from art_core.queue.payload import from_dict
from art_core.queue.queue import AttemptQueue
from art_core.queue.values import Leased

MAX_BYTES = 256 << 20
MAX_LEASES, MAX_WAIT_S, MAX_NAME = 1024, 60.0, 256


def queue_routes(
    queue: AttemptQueue,
    recordings: LeaseRecordings,
    *,
    api_key: str,
    model_name: str,
    check: Check,
) -> list[Route]:
    """Return the routes of a queue. `check` raises an ArtError for metrics that the log refuses."""
    routes = _QueueRoutes(queue, recordings, model_name, check)

    def keyed(handler: Handler) -> Handler:
        async def with_key(http: Request) -> Response:
            check_key(http, [api_key.encode()])
            return await handler(http)

        return guarded(with_key, _refusal)

    return [
        Route("/queue", keyed(routes.shown), methods=["GET"]),
        Route("/queue/lease", keyed(routes.lease), methods=["POST"]),
        Route("/queue/renew", keyed(routes.renew), methods=["POST"]),
        Route("/queue/return", keyed(routes.give_back), methods=["POST"]),
        Route("/queue/submit", keyed(routes.submit), methods=["POST"]),
    ]


def _refusal(error: BaseException) -> RequestError:
    if isinstance(error, ConfigError):
        return RequestError(422, str(error))
    if isinstance(error, HistoryError):
        return RequestError(507, str(error))
    return request_error(error)


class _QueueRoutes:
    def __init__(
        self, queue: AttemptQueue, recordings: LeaseRecordings, model_name: str, check: Check
    ) -> None:
        self._queue, self._recordings = queue, recordings
        self._model_name, self._check = model_name, check

    async def shown(self, _: Request) -> Response:
        return json_response(attrs.asdict(await self._queue.counts()))

    async def lease(self, http: Request) -> Response:
        body = await json_body(http, MAX_BYTES)
        worker, version = _text(body, "worker"), _text(body, "version")
        n, wait_s = _number(body, "n", 1, MAX_LEASES), _number(body, "wait_s", 0, MAX_WAIT_S)
        leased = await self._queue.lease(worker, max(1, int(n)), version=version, wait_s=wait_s)
        for lease in leased:
            self._recordings.begin(lease.key)
        base_url = f"{http.url.scheme}://{http.url.netloc}/v1"
        return json_response(_leased_dict(leased, base_url, self._model_name))

    async def renew(self, http: Request) -> Response:
        key = _text(await json_body(http, MAX_BYTES), "key")
        renewed = await self._queue.renew(key)
        if not renewed:
            self._recordings.forget(key)
        return json_response({"renewed": renewed})

    async def give_back(self, http: Request) -> Response:
        body = await json_body(http, MAX_BYTES)
        key, paid = _text(body, "key"), paid_from(body.get("paid", ()))
        returned = await self._queue.give_back(key, paid=paid)
        self._recordings.forget(key)
        return json_response({"returned": returned})

    async def submit(self, http: Request) -> Response:
        body = await json_body(http, MAX_BYTES)
        key, step = _text(body, "key"), body.get("step")
        if step is not None and not (type(step) is int and step >= 0):
            raise bad_parameter("step", "a count of steps", step)
        refusal = self._recordings.refusal(key)
        if refusal is not None:
            outcome: Outcomes = {None: refusal}
        elif "outcome" in body:
            outcome = from_dict(body["outcome"])
        else:
            outcome = await self._recorded(key, ending_of(body))
        paid = paid_from(body.get("paid", ()))
        reply = await self._queue.submit(key, outcome, step=step, paid=paid)
        self._recordings.forget(key)
        return json_response({"reply": reply})

    async def _recorded(self, key: str, ending: Ending) -> Outcomes:
        """Return a trajectory as it was recorded, with the given reward, or a failure."""
        if ending.reward is None:
            message = without_secrets(ending.failure or "no reason was given")
            failure = RolloutFailure(reason="raised", type="AttemptFailed", message=message)
            return {None: failure}
        try:
            trajectory = self._recordings.ended(key)
        except RequestError:
            if await asyncio.to_thread(self._queue.lease_state, key) == "accepted":
                return {None: Trajectory(reward=ending.reward)}  # it is sent again
            await self._queue.give_back(key)
            raise
        trajectory.metrics |= ending.metrics
        self._check(Trajectory(metrics=trajectory.metrics))
        trajectory.reward = ending.reward
        return {None: trajectory}


def _leased_dict(leased: Leased, base_url: str, model_name: str) -> dict[str, Any]:
    reached = {"base_url": base_url, "model_name": model_name}
    leases = [attrs.asdict(lease) | reached | {"api_key": lease.key} for lease in leased]
    return {"leases": leases, "finished": leased.finished}


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise bad_parameter(name, f"a text of at most {MAX_NAME} characters", value)
    return value


def _number(body: Mapping[str, Any], name: str, default: float, most: float) -> float:
    number = number_or_nan(body.get(name, default))
    if not 0 <= number <= most:
        raise bad_parameter(name, f"a number from 0 to {most:g}", body.get(name))
    return number
