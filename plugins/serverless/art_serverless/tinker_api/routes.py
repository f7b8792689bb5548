"""The routes of the API: JSON and protobuf in, the service's results out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

import attrs
import pydantic
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from tinker import types

from art_core.endpoint.errors import RequestError
from art_core.endpoint.http import json_body, json_response, unless_disconnected
from art_serverless.server.monitor import Monitor
from art_serverless.server.private import PrivatePaths
from art_serverless.tinker_api.checkpoints import TinkerPath, checked, checked_run, folder
from art_serverless.tinker_api.futures import Failed
from art_serverless.tinker_api.links import Links
from art_serverless.tinker_api.runs import TrainingRun, described
from art_serverless.tinker_api.sampling import MAX_SAMPLES
from art_serverless.tinker_api.service import Service
from art_serverless.tinker_api.wire import PROTOBUF, pass_request

log = logging.getLogger("art_serverless")
WAIT_S = 20.0
"""Seconds that a request for a result is held; the SDK gives up after 45."""
CONFIG = {"parallel_fwdbwd_chunks": False, "use_pyqwest_transport": False}
"""What the SDK is asked to do: to send the parts of a batch in their order, over plain HTTP/1.1."""
MAX_PAGE = 1000
Asked = TypeVar("Asked", bound=pydantic.BaseModel)


@attrs.frozen(kw_only=True)
class Routes:
    """Handlers of the API's requests."""

    service: Service
    monitor: Monitor
    private: PrivatePaths
    max_body_bytes: int
    links: Links = attrs.field(factory=Links)

    async def health(self, _: Request) -> Response:
        """Return that the server is up."""
        return json_response({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Return figures for Prometheus."""
        text, kind = self.monitor.text({}, len(self.service.runs))
        return Response(text, media_type=kind)

    async def config(self, _: Request) -> Response:
        """Return how the SDK should send requests."""
        return json_response(CONFIG)

    async def dynamic_config(self, _: Request) -> Response:
        """Return the settings that the SDK asks for again and again."""
        return json_response({"sample_cancel_enabled": True})

    async def telemetry(self, _: Request) -> Response:
        """Accept the SDK's events; they are not kept."""
        return json_response({"status": "accepted"})

    async def capabilities(self, _: Request) -> Response:
        """List the base models."""
        models = [
            {
                "model_name": name,
                "max_context_length": base.engine.context_length,
                "trainable": True,
                "sampleable": True,
            }
            for name, base in self.service.bases.items()
        ]
        return json_response({"supported_models": models})

    async def create_session(self, http: Request) -> Response:
        """Begin a session."""
        given = await self._given(http, types.CreateSessionRequest)
        session = self.service.sessions.begin(given.user_metadata, given.display_name)
        return json_response({"session_id": session.id, "type": "create_session"})

    async def heartbeat(self, http: Request) -> Response:
        """Hear a session."""
        given = await self._given(http, types.SessionHeartbeatRequest)
        self.service.sessions.get(given.session_id)
        return json_response({"type": "session_heartbeat"})

    async def finish(self, http: Request) -> Response:
        """End a session."""
        given = await json_body(http)
        failed = dict(given.get("reason") or {}).get("type") == "errored"
        session_id = http.path_params["session_id"]
        await self.service.end(session_id, "failed" if failed else "finished")
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def create_model(self, http: Request) -> Response:
        """Make a model to train."""
        given = await self._given(http, types.CreateModelRequest)
        key = f"model-{given.model_seq_id}"
        return self._later(given.session_id, key, self.service.create_model(given))

    async def load_weights(self, http: Request) -> Response:
        """Load a checkpoint into a model, or into a new one."""
        given = await self._given(http, types.LoadWeightsRequest)
        if given.session_id is not None:
            key = f"model-{given.model_seq_id}"
            return self._later(given.session_id, key, self.service.load_weights(given))
        run = self.service.run(given.model_id or "")
        return self._later(run.id, given.seq_id, self.service.load_weights(given))

    async def info(self, http: Request) -> Response:
        """Describe a model."""
        run = self.service.run((await self._given(http, types.GetInfoRequest)).model_id)
        name = run.base.name
        data = {"arch": run.base.architecture, "model_name": name, "tokenizer_id": name}
        found = {"model_data": data, "model_id": run.id, "model_name": name}
        return json_response({**found, "is_lora": True, "lora_rank": run.rank, "type": "get_info"})

    async def unload(self, http: Request) -> Response:
        """Drop a model from memory."""
        run = self.service.run((await self._given(http, types.UnloadModelRequest)).model_id)
        return self._later(run.session_id, f"unload-{run.id}", self.service.unload(run))

    async def forward_backward(self, http: Request) -> Response:
        """Run a forward and a backward pass."""
        request = pass_request(await self._bytes(http))
        run = self.service.run(request.model_id)
        work = self.service.forward_backward(run, request)
        return self._later(run.id, request.seq_id or None, work)

    async def optim_step(self, http: Request) -> Response:
        """Take an optimizer step."""
        given = await self._given(http, types.OptimStepRequest)
        run = self.service.run(given.model_id)
        return self._of_run(run, given, self.service.optim_step(run, given.optim_params))

    async def save_weights(self, http: Request) -> Response:
        """Save a state to go on from."""
        given = await self._given(http, types.SaveWeightsRequest)
        run = self.service.run(given.model_id)
        return self._of_run(run, given, self.service.save(run, given, "weights"))

    async def save_for_sampler(self, http: Request) -> Response:
        """Save weights to sample from."""
        given = await self._given(http, types.SaveWeightsForSamplerRequest)
        run = self.service.run(given.model_id)
        return self._of_run(run, given, self.service.save_for_sampler(run, given))

    async def save_external(self, http: Request) -> Response:
        """Save an adapter in peft's format, to download."""
        given = await self._given(http, types.SaveWeightsExternalRequest)
        if given.age_encryption_recipients:
            raise RequestError(422, "encrypted weights are not served here")
        run = self.service.run(given.model_id)
        return self._of_run(run, given, self.service.save(run, given, "external_weights"))

    async def create_sampling_session(self, http: Request) -> Response:
        """Make a sampler."""
        given = await self._given(http, types.CreateSamplingSessionRequest)
        sampler_id = self.service.create_sampler(given)
        kind = "create_sampling_session"
        return json_response({"sampling_session_id": sampler_id, "type": kind})

    async def sampler(self, http: Request) -> Response:
        """Describe a sampler."""
        return json_response(self.service.samplers.get(http.path_params["sampler_id"]).about())

    async def sample(self, http: Request) -> Response:
        """Sample."""
        given = await self._given(http, types.SampleRequest)
        if given.sampling_session_id is None:
            raise RequestError(422, "sampling_session_id is missing: create a sampling client")
        sampler = self.service.samplers.get(given.sampling_session_id)
        self.service.sessions.get(sampler.session_id)
        request_id = self.service.submit(
            sampler.id, given.seq_id, self.service.sample(sampler, given)
        )
        numbers = range(min(max(given.num_samples, 1), MAX_SAMPLES))
        ids = [f"{request_id}:{number}" for number in numbers]
        return json_response({"request_id": request_id, "sample_sequence_ids": ids})

    async def result(self, http: Request) -> Response:
        """Return a result; 408 while there is none, for the SDK to ask again."""
        given = await self._given(http, types.FutureRetrieveRequest)
        found = await unless_disconnected(
            http, self.service.futures.result(given.request_id, WAIT_S)
        )
        if found is None:
            waits = {"type": "try_again", "request_id": given.request_id, "queue_state": "active"}
            return json_response(waits, HTTPStatus.REQUEST_TIMEOUT)
        if isinstance(found, Failed):
            reason = self.private.hide_all(found.reason)
            return json_response(
                {"error": reason, "category": "user" if found.by_user else "server"}
            )
        if isinstance(found, bytes):
            return Response(found, media_type=PROTOBUF)
        return json_response(found)

    async def cancel(self, http: Request) -> Response:
        """Stop a request."""
        self.service.futures.cancel(str((await json_body(http)).get("request_id")))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def training_runs(self, http: Request) -> Response:
        """List the runs of this and of earlier servers, the newest first."""
        names = self.service.checkpoints.runs()
        found = await asyncio.to_thread(lambda: [self._run_of(name) for name in names])
        return _page(http, "training_runs", [run for run in found if run is not None], 20)

    async def training_run(self, http: Request) -> Response:
        """Describe a run."""
        name = checked_run(http.path_params["run"])
        found = await asyncio.to_thread(self._run_of, name)
        if found is None:
            raise RequestError(404, f"there is no training run {name!r}")
        return json_response(found)

    async def checkpoints(self, http: Request) -> Response:
        """List the checkpoints of a run."""
        name = checked_run(http.path_params["run"])
        return json_response({"checkpoints": self.service.checkpoints.of(name)})

    async def all_checkpoints(self, http: Request) -> Response:
        """List the checkpoints of all runs, the newest first."""
        store = self.service.checkpoints
        found = [each for run in store.runs() for each in store.of(run)]
        found.sort(key=lambda each: str(each["time"]), reverse=True)
        return _page(http, "checkpoints", found, 100)

    async def delete_checkpoint(self, http: Request) -> Response:
        """Delete a checkpoint."""
        await asyncio.to_thread(self.service.checkpoints.delete, _path(http))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def checkpoint_ttl(self, http: Request) -> Response:
        """Set how long a checkpoint stays."""
        ttl_s = (await json_body(http)).get("ttl_seconds")
        if ttl_s is not None and (not isinstance(ttl_s, int) or ttl_s < 1):
            raise RequestError(422, f"ttl_seconds must be at least 1 or null, got {ttl_s!r:.80}")
        self.service.checkpoints.set_ttl(_path(http), ttl_s)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def weights_info(self, http: Request) -> Response:
        """Describe the model of a checkpoint."""
        path = TinkerPath.parse((await json_body(http)).get("tinker_path"))
        _, manifest = self.service.checkpoints.read(path)
        trained = {"train_unembed": False, "train_mlp": True, "train_attn": True}
        found = {"base_model": manifest["base_model"], "lora_rank": manifest["lora_rank"]}
        return json_response({**found, "is_lora": True, **trained})

    async def external_urls(self, http: Request) -> Response:
        """Return a link to each file of exported weights."""
        path = TinkerPath(
            checked_run(http.path_params["run"]), "external_weights",
            checked("name", http.path_params["name"]),
        )  # fmt: skip
        place, _ = self.service.checkpoints.read(path)
        urls, expires = self.links.of(str(http.base_url).rstrip("/"), path, place)
        return json_response({"urls": urls, "expires": expires})

    async def file(self, http: Request) -> Response:
        """Return a file of exported weights, by its signed link."""
        found = http.path_params
        path = TinkerPath(found["run"], "external_weights", found["name"])
        query = http.query_params
        self.links.check(path, found["file"], query.get("end", ""), query.get("signature", ""))
        place, _ = self.service.checkpoints.read(path)
        return FileResponse(place / found["file"])

    async def sessions(self, http: Request) -> Response:
        """List the open sessions."""
        low, high = _bounds(http, 20)
        return json_response({"sessions": self.service.sessions.ids[low:high]})

    async def session(self, http: Request) -> Response:
        """Describe a session."""
        session = self.service.sessions.get(http.path_params["session_id"])
        return json_response(session.about())

    async def not_served(self, http: Request) -> Response:
        """Refuse what the service has and this server does not."""
        raise RequestError(501, f"{http.url.path} is not served here: {_NOT_SERVED}")

    async def _given(self, http: Request, kind: type[Asked]) -> Asked:
        body = await json_body(http, self.max_body_bytes)
        try:
            return kind.model_validate(body)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise RequestError(422, f"{place}: {first['msg']}", place or None) from None

    async def _bytes(self, http: Request) -> bytes:
        kind = http.headers.get("content-type", "")
        if not kind.startswith(PROTOBUF) or http.headers.get("content-encoding"):
            raise RequestError(
                415, f"training data come as {PROTOBUF}, not compressed; got {kind!r:.80}"
            )
        body = bytearray()
        async for part in http.stream():
            body += part
            if len(body) > self.max_body_bytes:
                raise RequestError(413, f"the body is larger than {self.max_body_bytes} bytes")
        return bytes(body)

    def _of_run(self, owner: Any, given: Any, work: Any) -> Response:
        return self._later(owner.id, given.seq_id, work)

    def _later(self, owner: str, key: int | str | None, work: Any) -> Response:
        return json_response({"request_id": self.service.submit(owner, key, work)})

    def _run_of(self, name: str) -> dict[str, Any] | None:
        run: TrainingRun | None = self.service.runs.get(name)
        found = described(
            self.service.checkpoints.directory / folder(name), self.service.checkpoints.of(name)
        )
        return found if run is None or found is None else {**found, **run.about()}


_NOT_SERVED = "it has one owner, whose checkpoints are private, and no projects or audits"


def _path(http: Request) -> TinkerPath:
    found = http.path_params
    return TinkerPath.parse(f"tinker://{found['run']}/{found['kind']}/{found['name']}")


def _page(http: Request, name: str, items: Sequence[Any], usual: int) -> Response:
    low, high = _bounds(http, usual)
    cursor = {"offset": low, "limit": high - low, "total_count": len(items)}
    return json_response({name: items[low:high], "cursor": cursor})


def _bounds(http: Request, usual: int) -> tuple[int, int]:
    found = {}
    for key, default in (("offset", 0), ("limit", usual)):
        text = http.query_params.get(key, str(default))
        if not text.isdecimal() or len(text) > 9:
            raise RequestError(422, f"{key} must be a number of at least 0, got {text!r:.80}", key)
        found[key] = int(text)
    return found["offset"], found["offset"] + min(found["limit"], MAX_PAGE)


Handler = Callable[[Routes, Request], Awaitable[Response]]
_CHECKPOINT = "/training_runs/{run}/checkpoints/{kind}/{name}"
OPERATIONS: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/client/config", Routes.config),
    ("POST", "/client/dynamic_config", Routes.dynamic_config),
    ("POST", "/telemetry", Routes.telemetry),
    ("GET", "/get_server_capabilities", Routes.capabilities),
    ("POST", "/create_session", Routes.create_session),
    ("POST", "/session_heartbeat", Routes.heartbeat),
    ("POST", "/sessions/{session_id}/finish", Routes.finish),
    ("GET", "/sessions", Routes.sessions),
    ("GET", "/sessions/{session_id}", Routes.session),
    ("POST", "/create_model", Routes.create_model),
    ("POST", "/load_weights", Routes.load_weights),
    ("POST", "/get_info", Routes.info),
    ("POST", "/unload_model", Routes.unload),
    ("POST", "/forward_backward", Routes.forward_backward),
    ("POST", "/optim_step", Routes.optim_step),
    ("POST", "/save_weights", Routes.save_weights),
    ("POST", "/save_weights_for_sampler", Routes.save_for_sampler),
    ("POST", "/save_weights_external", Routes.save_external),
    ("POST", "/create_sampling_session", Routes.create_sampling_session),
    ("GET", "/samplers/{sampler_id}", Routes.sampler),
    ("POST", "/asample", Routes.sample),
    ("POST", "/retrieve_future", Routes.result),
    ("POST", "/cancel_future", Routes.cancel),
    ("GET", "/training_runs", Routes.training_runs),
    ("GET", "/training_runs/{run}", Routes.training_run),
    ("GET", "/training_runs/{run}/checkpoints", Routes.checkpoints),
    ("DELETE", _CHECKPOINT, Routes.delete_checkpoint),
    ("PUT", f"{_CHECKPOINT}/ttl", Routes.checkpoint_ttl),
    ("POST", f"{_CHECKPOINT}/publish", Routes.not_served),
    ("DELETE", f"{_CHECKPOINT}/publish", Routes.not_served),
    ("GET", "/training_runs/{run}/checkpoints/external_weights/{name}/external_weights_urls",
     Routes.external_urls),
    ("GET", "/checkpoints", Routes.all_checkpoints),
    ("POST", "/weights_info", Routes.weights_info),
    ("POST", "/copy_weights", Routes.not_served),
    ("POST", "/create_custom_loss", Routes.not_served),
    ("PUT", "/sessions/{session_id}/project", Routes.not_served),
)  # fmt: skip
"""The requests that need the key, under /api/v1."""
OPEN: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/healthz", Routes.health),
    ("GET", "/files/{run}/{name}/{file}", Routes.file),
)
