"""The gateway's routes beside the protocols, in Starlette. Import it only to serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request  # noqa: TID253
from starlette.responses import Response  # noqa: TID253
from starlette.routing import Route  # noqa: TID253

from art_core.base.errors import ArtError
from art_core.base.numbers import number_or_nan
from art_core.data.trajectory import Trajectory
from art_core.endpoint.errors import RequestError, bad_parameter
from art_core.endpoint.http import (
    Handler,
    bearer_key,
    check_key,
    guarded,
    json_body,
    json_response,
)
from art_core.gateway.attempts import Attempts, Ending

MAX_BYTES = 64 << 10
MAX_NAME, MAX_METRICS = 256, 100
Check = Callable[[Trajectory], None]


def attempt_routes(
    attempts: Attempts, *, api_key: str, model_name: str, check: Check
) -> list[Route]:
    """Return the routes that begin, measure, end and show attempts. `check` raises an ArtError for
    metrics that the model's log refuses.
    """
    routes = _AttemptRoutes(attempts, model_name, check)

    def keyed(handler: Handler) -> Handler:
        async def with_key(http: Request) -> Response:
            check_key(http, [api_key.encode()])
            return await handler(http)

        return guarded(with_key)

    one = "/attempts/{attempt_id}"
    return [
        Route("/health", routes.health, methods=["GET"]),
        Route("/v1/models", guarded(routes.models), methods=["GET"]),
        Route("/attempts", keyed(routes.begin), methods=["POST"]),
        Route("/attempts", keyed(routes.listed), methods=["GET"]),
        Route(one, keyed(routes.shown), methods=["GET"]),
        Route(f"{one}/metrics", keyed(routes.measure), methods=["POST"]),
        Route(f"{one}/end", keyed(routes.end), methods=["POST"]),
    ]


class _AttemptRoutes:
    def __init__(self, attempts: Attempts, model_name: str, check: Check) -> None:
        self._attempts = attempts
        self._model_name = model_name
        self._log_check = check

    async def health(self, _: Request) -> Response:
        return json_response({"status": "ok"})

    async def models(self, http: Request) -> Response:
        """List the model for an attempt's key, with the fields that OpenAI and Anthropic have."""
        self._attempts.recording_of(bearer_key(http))
        name, began = self._model_name, "1970-01-01T00:00:00Z"
        openai = {"id": name, "object": "model", "created": 0, "owned_by": "art"}
        anthropic = {"type": "model", "display_name": name, "created_at": began}
        ends = {"has_more": False, "first_id": name, "last_id": name}
        return json_response({"object": "list", "data": [openai | anthropic], **ends})

    async def begin(self, http: Request) -> Response:
        body = await _body(http, {"scenario_id", "metadata"})
        scenario_id, metadata = body.get("scenario_id"), body.get("metadata") or {}
        if not isinstance(scenario_id, str) or not 0 < len(scenario_id) <= MAX_NAME:
            expected = f"a text of 1 to {MAX_NAME} characters"
            raise bad_parameter("scenario_id", expected, scenario_id)
        if not isinstance(metadata, Mapping):
            raise bad_parameter("metadata", "an object", metadata)
        attempt = self._attempts.begin(scenario_id, metadata)
        # The address by which this client reaches the gateway; it may listen on several.
        reached = {
            "base_url": f"{http.url.scheme}://{http.url.netloc}/v1",
            "api_key": attempt.key,
            "model_name": self._model_name,
            "timeout_s": self._attempts.timeout_s,
        }
        return json_response(attempt.facts() | reached, 201)

    async def listed(self, _: Request) -> Response:
        return json_response({"object": "list", "data": self._attempts.listed()})

    async def shown(self, http: Request) -> Response:
        return json_response(self._attempts.facts(http.path_params["attempt_id"]))

    async def measure(self, http: Request) -> Response:
        metrics = _metrics(await _body(http, None))
        attempt_id = http.path_params["attempt_id"]
        return json_response(self._attempts.measure(attempt_id, metrics, self._check))

    async def end(self, http: Request) -> Response:
        ending = ending_of(await _body(http, {"reward", "failure", "metrics"}))
        attempt_id = http.path_params["attempt_id"]
        return json_response(self._attempts.end(attempt_id, ending, self._check))

    def _check(self, measured: Trajectory) -> None:
        if len(measured.metrics) > MAX_METRICS:
            reason = f"an attempt has at most {MAX_METRICS} metrics, got {len(measured.metrics)}"
            raise RequestError(400, reason, "metrics")
        try:
            self._log_check(measured)
        except ArtError as error:
            raise RequestError(400, str(error), "metrics") from error


async def _body(http: Request, known: set[str] | None) -> dict[str, Any]:
    """Read a JSON object; RequestError for names that are not among the known ones."""
    body = await json_body(http, MAX_BYTES)
    for name in body:
        if known is not None and name not in known:
            reason = f"unknown field {name!r}; known: {', '.join(sorted(known))}"
            raise RequestError(400, reason, name, "unknown_parameter")
    return body


def ending_of(body: Mapping[str, Any]) -> Ending:
    """Return the end of an attempt in a body; RequestError for one that does not fit."""
    reward, failure = body.get("reward"), body.get("failure")
    metrics = body.get("metrics") or {}
    if (reward is None) == (failure is None):
        raise RequestError(400, "give either a reward or a failure", "reward")
    if reward is not None and not _is_number(reward):
        raise bad_parameter("reward", "a finite number", reward)
    if failure is not None and not isinstance(failure, str):
        raise bad_parameter("failure", "the reason as a text", failure)
    if not isinstance(metrics, Mapping):
        raise bad_parameter("metrics", "an object", metrics)
    return Ending(None if reward is None else float(reward), failure, _metrics(metrics))


def _metrics(given: Mapping[str, Any]) -> dict[str, float]:
    for name, value in given.items():
        if not 0 < len(name) <= MAX_NAME:
            raise bad_parameter("metrics", f"names of 1 to {MAX_NAME} characters", name)
        if not isinstance(value, bool) and not _is_number(value):
            raise bad_parameter(name[:MAX_NAME], "a number, true or false", value)
    return dict(given)


def _is_number(value: Any) -> bool:
    """Return whether JSON has a number here, one that a float can hold."""
    return abs(number_or_nan(value)) < float("inf")
