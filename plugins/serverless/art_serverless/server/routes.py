"""The operations of the API: their handlers, and the table of them."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from art_core import AdvantageSpec, LossSpec
from art_core.base.errors import unknown
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.errors import RequestError, shown
from art_core.endpoint.http import bearer_key, json_body, json_response, unless_disconnected
from art_core.endpoint.protocols.messages import MESSAGES
from art_serverless.protocol import (
    JOBS,
    MAX_ITEMS,
    MAX_WAIT_S,
    MODELS,
    SFT,
    SFT_JOBS,
    Address,
    sft_options,
    train_config,
)
from art_serverless.server.inference import Inference
from art_serverless.server.keys import Keys
from art_serverless.server.monitor import Monitor
from art_serverless.server.names import checked_address, checked_base_model
from art_serverless.server.openapi import Operation, openapi, page
from art_serverless.server.private import PrivatePaths
from art_serverless.server.protocols import ProtocolRoutes
from art_serverless.server.slots import ModelSlots
from art_serverless.server.store import Store, StoredJob, StoredModel, digest_of
from art_serverless.server.work import Work
from art_serverless.wire import groups_of

MAX_STEPS = 10_000
"""Steps of one request to delete checkpoints."""
MAX_NAME = 256


@attrs.frozen(kw_only=True)
class Server:
    """The parts of the server that the routes use."""

    store: Store
    slots: ModelSlots
    work: Work
    inference: Inference
    monitor: Monitor
    keys: Keys
    max_body_bytes: int
    losses: Mapping[str, LossSpec]
    advantages: Mapping[str, AdvantageSpec]
    private: PrivatePaths


class Routes(ProtocolRoutes):
    """The handlers, one method per operation. Their docstrings appear in the API's description."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.inference, server.keys)
        self._server = server
        self._store, self._slots, self._work = server.store, server.slots, server.work

    async def health(self, _: Request) -> Response:
        """Show that the server runs."""
        return json_response({"status": "ok"})

    async def openapi(self, _: Request) -> Response:
        """Describe the API for tools, as OpenAPI."""
        return json_response(openapi(OPERATIONS))

    async def docs(self, _: Request) -> Response:
        """Describe the API for people."""
        return HTMLResponse(page(OPERATIONS))

    async def metrics(self, _: Request) -> Response:
        """Return figures for Prometheus."""
        body, kind = self._server.monitor.text(self._store.job_counts(), self._slots.awake)
        return Response(body, media_type=kind)

    async def register(self, http: Request) -> Response:
        """Register a model and load it, or find it with `return_existing`."""
        given = await self._object(http)
        address = checked_address(given)
        base_model = checked_base_model(given, self._slots.base_models)
        found = self._store.models_called(address.name, address.entity, address.project)
        if found and not given.get("return_existing"):
            raise RequestError(409, f"model {address.uri} exists; ask with return_existing", "name")
        if found and found[0].base_model != base_model:
            raise RequestError(
                409,
                f"model {address.uri} has base model {found[0].base_model!r}, not {base_model!r}",
                "base_model",
            )
        if not found:
            owner = self._server.keys.owner(bearer_key(http))
            return json_response((await self._registered(address, base_model, owner)).shown())
        async with self._slots.using(found[0]):  # the client's timeout allows for loading
            return json_response(found[0].shown())

    async def _registered(self, address: Address, base_model: str, owner: str) -> StoredModel:
        try:
            stored = self._store.add_model(address, base_model, owner)
        except sqlite3.IntegrityError:
            # Another request has registered it meanwhile.
            return self._store.models_called(address.name, address.entity, address.project)[0]
        try:
            async with self._slots.using(stored):
                return stored
        except BaseException:
            self._store.delete_model(stored.id)
            raise

    async def delete(self, http: Request) -> Response:
        """Delete a model and its files, unless it is in use."""
        stored = self._model(http)
        if self._work.busy(stored.id):
            raise RequestError(409, f"{stored.address.uri} is being trained; delete it afterwards")
        await self._slots.remove(stored)
        self._store.delete_model(stored.id)
        self._server.inference.sampled.forget(stored.id)
        return Response(status_code=204)

    async def log(self, http: Request) -> Response:
        """Write trajectories to the log of the model on the server."""
        stored = self._model(http)
        given = await self._object(http)
        split = given.get("split") or "val"
        if not isinstance(split, str) or len(split) > MAX_NAME:
            raise RequestError(422, f"split must be a name, got {shown(split)}", "split")
        groups = await asyncio.to_thread(groups_of, given.get("trajectory_groups"))
        async with self._slots.using(stored) as model:
            await model.log(groups, split=split)
        return Response(status_code=204)

    async def checkpoints(self, http: Request) -> Response:
        """List checkpoints, oldest first; `order` "desc" reverses them."""
        stored = self._model(http)
        async with self._slots.using(stored) as model:
            steps = [checkpoint.step for checkpoint in await model.checkpoints()]
        items = [{"id": f"{stored.id}-{step}", "step": step, "metrics": {}} for step in steps]
        if http.query_params.get("order") == "desc":
            items.reverse()
        after = http.query_params.get("after")
        ids = [item["id"] for item in items]
        if after in ids:
            items = items[ids.index(after) + 1 :]
        return _page(items, _limit(http))

    async def delete_checkpoints(self, http: Request) -> Response:
        """Delete checkpoints by step; the newest stays."""
        stored = self._model(http)
        steps = (await self._object(http)).get("steps")
        few = isinstance(steps, list) and len(steps) <= MAX_STEPS
        if not few or not all(type(step) is int for step in steps or ()):
            expected = f"a list of at most {MAX_STEPS} whole numbers"
            raise RequestError(422, f"steps must be {expected}, got {shown(steps)}", "steps")
        assert isinstance(steps, list)
        async with self._slots.using(stored) as model:
            existing = [c.step for c in await model.checkpoints()]
            keep = set(existing) - set(steps)
            deleted = await self._slots.backend.delete_checkpoints(model, keep)
        missing = [step for step in steps if step not in deleted]
        return json_response({"deleted_count": len(deleted), "not_found_steps": missing})

    async def submit(self, http: Request) -> Response:
        """Run a training step. A second request with the same header Idempotency-Key returns the
        same job. Choices are sent as chat completions returned them, after the same messages, or
        with prompt_token_ids, token_ids and logprobs.content.
        """
        given = await self._object(http)
        stored = self._known_model(given.get("model_id"))
        config = given.get("experimental_config", {})
        if not isinstance(config, dict | None):
            raise RequestError(422, "experimental_config must be an object", "experimental_config")
        options = train_config(config or {}, self._server.losses, self._server.advantages)
        groups = given.get("trajectory_groups")
        await asyncio.to_thread(groups_of, groups)
        key = http.headers.get("idempotency-key") or None
        digest, filled, problem = await asyncio.to_thread(self._filled, stored.id, options, groups)
        return await self._queued(stored, options, filled, key, digest, problem)

    async def _queued(
        self, stored: StoredModel, options: Mapping[str, Any], groups: bytes, key: str | None,
        digest: str, problem: str | None = None,
    ) -> Response:  # fmt: skip
        job = await asyncio.to_thread(self._store.add_job, stored.id, options, groups, key, digest)
        if job is not None:
            if not problem or not self._failed_at_once(job, problem):
                self._work.add(job)
        elif (job := self._store.job_of(stored.id, str(key))) is None:
            raise RequestError(404, f"{stored.address.uri} was deleted")
        return json_response({"id": job.id})

    def _failed_at_once(self, job: StoredJob, problem: str) -> bool:
        """Record that a job cannot be trained. Return False if the disk is full; training then
        fails.
        """
        try:
            self._store.end(job.id, "failed", [("training_failed", {"error_message": problem})])
        except sqlite3.OperationalError:
            return False
        return True

    def _filled(
        self, model_id: str, options: Mapping[str, Any], groups: Any
    ) -> tuple[str, bytes, str | None]:
        """Return the digest of a job's request, its groups with the tokens of sampled choices, and
        the reason why they cannot be trained on, if any.
        """
        filled = self._server.inference.sampled.filled(model_id, groups)
        digest = digest_of(options, orjson.dumps(groups))
        return digest, orjson.dumps(filled.groups), filled.problem()

    async def find_jobs(self, http: Request) -> Response:
        """Find the job that a request made, by its idempotency key."""
        stored = self._known_model(http.query_params.get("model_id"))
        job = self._store.job_of(stored.id, http.query_params.get("idempotency_key", ""))
        return _page([{"id": job.id, "state": job.state}] if job else [], MAX_ITEMS)

    async def events(self, http: Request) -> Response:
        """List a job's events after the event `after`. If there are none, wait up to `wait` seconds
        for the next.
        """
        job_id = http.path_params["job_id"]
        after = _number(http, "after", 0.0, float(1 << 53))
        wait_s = _number(http, "wait", 0.0, MAX_WAIT_S)
        limit = _limit(http)
        if self._store.job(job_id) is None:
            raise RequestError(404, f"no training job {job_id!r}")
        items = self._store.events(job_id, int(after), limit + 1)
        if not items and wait_s and not self._is_over(job_id):
            with suppress(TimeoutError):
                change = asyncio.wait_for(self._work.listen(job_id).wait(), wait_s)
                await unless_disconnected(http, change)
            items = self._store.events(job_id, int(after), limit + 1)
        return _page(items, limit)

    def _is_over(self, job_id: str) -> bool:
        job = self._store.job(job_id)
        return job is None or job.state in ("ended", "failed")

    async def sft(self, http: Request) -> Response:
        """Run a step of supervised fine-tuning: each group of `trajectory_groups` is a batch, and
        an optimizer step. Its events are those of a training job.
        """
        given = await self._object(http)
        stored = self._known_model(given.get("model_id"))
        if "trajectory_groups" not in given:
            expected = "data of supervised fine-tuning come as trajectory_groups, one per batch"
            raise RequestError(422, f"{expected}, not as a URL", "trajectory_groups")
        options = {SFT: sft_options(given.get("config"))}
        groups = given["trajectory_groups"]
        await asyncio.to_thread(groups_of, groups)
        key = http.headers.get("idempotency-key") or None
        digest, filled, _ = await asyncio.to_thread(self._filled, stored.id, options, groups)
        return await self._queued(stored, options, filled, key, digest)

    async def names(self, _: Request) -> Response:
        """List the models, as OpenAI does."""
        entries = [_openai_model(stored) for stored in self._store.models()]
        return json_response({"object": "list", "data": entries})

    async def name(self, http: Request) -> Response:
        """Return one model, as OpenAI does."""
        stored, _ = self._server.inference.named(http.path_params["name"])
        return json_response(_openai_model(stored))

    async def chat(self, http: Request) -> Response:
        """Sample, as OpenAI does. `model` is wandb-artifact:///entity/project/name[:stepN], or
        name[@N].
        """
        context = http.headers.get(CONTEXT_HEADER, "")
        answer = self._server.inference.chat(await json_body(http), context)
        return await unless_disconnected(http, answer)

    async def _object(self, http: Request) -> dict[str, Any]:
        return await json_body(http, self._server.max_body_bytes)

    def _model(self, http: Request) -> StoredModel:
        return self._known_model(http.path_params["model_id"])

    def _known_model(self, model_id: Any) -> StoredModel:
        short = isinstance(model_id, str) and len(model_id) <= MAX_NAME
        stored = self._store.model(model_id) if short else None
        if stored is None:
            name = model_id if isinstance(model_id, str) else shown(model_id)
            message = unknown("model", name, [m.id for m in self._store.models()])
            raise RequestError(404, message, "model_id", "model_not_found")
        return stored


_MODEL = {"entity": str, "project": str, "name": str, "base_model": str, "return_existing": bool}
_JOB = {"model_id": str, "trajectory_groups": list, "experimental_config": dict}
_SFT_JOB = {"model_id": str, "trajectory_groups": list, "config": dict}
_LOG = {"model_id": str, "trajectory_groups": list, "split": str}

OPERATIONS = (
    Operation("POST", f"/v1{MODELS}", Routes.register,
              "{id, entity, project, name, base_model, run_id}", body=_MODEL),
    Operation("DELETE", f"/v1{MODELS}/{{model_id}}", Routes.delete, "204"),
    Operation("POST", f"/v1{MODELS}/{{model_id}}/log", Routes.log, "204", body=_LOG),
    Operation("GET", f"/v1{MODELS}/{{model_id}}/checkpoints", Routes.checkpoints,
              "{data: [{id, step, metrics}], has_more}",
              query={"after": str, "limit": int, "order": str}),
    Operation("DELETE", f"/v1{MODELS}/{{model_id}}/checkpoints", Routes.delete_checkpoints,
              "{deleted_count, not_found_steps}", body={"steps": list}),
    Operation("POST", f"/v1{JOBS}", Routes.submit, "{id}", body=_JOB),
    Operation("GET", f"/v1{JOBS}", Routes.find_jobs, "{data: [{id, state}], has_more}",
              query={"model_id": str, "idempotency_key": str}),
    Operation("GET", f"/v1{JOBS}/{{job_id}}/events", Routes.events,
              "{data: [{id, type, data}], has_more}",
              query={"after": str, "limit": int, "wait": float}),
    Operation("POST", f"/v1{SFT_JOBS}", Routes.sft, "{id}", body=_SFT_JOB),
    Operation("GET", "/v1/models", Routes.names, "{object, data}"),
    Operation("GET", "/v1/models/{name:path}", Routes.name, "{id, object, created, owned_by}"),
    Operation("POST", "/v1/chat/completions", Routes.chat, "a chat completion, or its chunks",
              body={"model": str, "messages": list}),
    Operation("POST", "/v1/responses", Routes.responses, "a response, or its events",
              body={"model": str, "input": list}),
    Operation("GET", "/v1/responses/{response_id}", Routes.response, "a response"),
    Operation("DELETE", "/v1/responses/{response_id}", Routes.response, "{id, object, deleted}"),
    Operation("POST", "/v1/messages", Routes.messages, "a message, or its events",
              body={"model": str, "messages": list, "max_tokens": int}, error=MESSAGES.error),
    Operation("POST", "/v1/messages/count_tokens", Routes.count_tokens, "{input_tokens}",
              body={"model": str, "messages": list}, error=MESSAGES.error),
    Operation("POST", "/v1/completions", Routes.completions, "a text completion, or its chunks",
              body={"model": str, "prompt": list, "echo": bool, "max_tokens": int}),
    Operation("GET", "/metrics", Routes.metrics, "text"),
    Operation("GET", "/health", Routes.health, "{status}", needs_key=False),
    Operation("GET", "/openapi.json", Routes.openapi, "OpenAPI 3.1", needs_key=False),
    Operation("GET", "/docs", Routes.docs, "HTML", needs_key=False),
)  # fmt: skip


def _number(http: Request, name: str, low: float, high: float) -> float:
    """Return a number of the query within two bounds; the lower bound if it is missing."""
    text = http.query_params.get(name)
    if not text:
        return low
    try:
        return min(max(float(text), low), high) if math.isfinite(float(text)) else low
    except ValueError:
        raise RequestError(422, f"{name} must be a number, got {text!r:.80}", name) from None


def _limit(http: Request) -> int:
    """Return the number of items that a page may have."""
    return int(_number(http, "limit", 0, MAX_ITEMS)) or MAX_ITEMS


def _page(items: list[dict[str, Any]], limit: int) -> Response:
    return json_response({"data": items[:limit], "has_more": len(items) > limit})


def _openai_model(stored: StoredModel) -> dict[str, Any]:
    return {"id": stored.address.uri, "object": "model", "created": 0, "owned_by": stored.entity}
