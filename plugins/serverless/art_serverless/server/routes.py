"""What each route of the server does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from art_core import LossSpec
from art_core.base.errors import unknown
from art_core.endpoint.engine import CONTEXT_HEADER
from art_core.endpoint.errors import shown
from art_core.endpoint.http import json_body, json_response, unless_gone
from art_serverless.protocol import (
    LONGEST_WAIT_S,
    MOST_ITEMS,
    Address,
    train_config,
)
from art_serverless.server.api_page import openapi, page
from art_serverless.server.errors import RefusedError
from art_serverless.server.http import (
    limit_of,
    number,
    page_of,
)
from art_serverless.server.inference import Inference
from art_serverless.server.keys import Keys
from art_serverless.server.monitor import Monitor
from art_serverless.server.names import checked_address, checked_base_model
from art_serverless.server.private import PrivatePaths
from art_serverless.server.seats import Seats
from art_serverless.server.store import Store, StoredJob, StoredModel, digest_of
from art_serverless.server.work import Work
from art_serverless.wire import groups_of

MOST_STEPS = 10_000
"""Steps of one request to delete checkpoints."""
MAX_NAME = 256


@attrs.frozen(kw_only=True)
class Server:
    """What the routes work with."""

    store: Store
    seats: Seats
    work: Work
    inference: Inference
    monitor: Monitor
    keys: Keys
    max_body_bytes: int
    losses: Mapping[str, LossSpec]
    private: PrivatePaths


class Routes:
    """A method a route; `create_app` says which."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._store, self._seats, self._work = server.store, server.seats, server.work

    async def health(self, _: Request) -> Response:
        """Say that the server is there."""
        return json_response({"status": "ok"})

    async def openapi(self, _: Request) -> Response:
        """Answer with the API as OpenAPI."""
        return json_response(openapi())

    async def docs(self, _: Request) -> Response:
        """Answer with the API as a page to read."""
        return HTMLResponse(page())

    async def metrics(self, _: Request) -> Response:
        """Answer with what Prometheus scrapes."""
        body, kind = self._server.monitor.text(self._store.job_counts(), self._seats.awake)
        return Response(body, media_type=kind)

    async def register(self, http: Request) -> Response:
        """Register a model and load it; one that exists must be asked for as such."""
        given = await self._object(http)
        address = checked_address(given)
        base_model = checked_base_model(given, self._seats.base_models)
        found = self._store.models_called(address.name, address.entity, address.project)
        if found and not given.get("return_existing"):
            raise RefusedError(409, f"model {address.uri} exists; ask with return_existing", "name")
        if found and found[0].base_model != base_model:
            raise RefusedError(
                409,
                f"model {address.uri} has base model {found[0].base_model!r}, not {base_model!r}",
                "base_model",
            )
        if not found:
            return json_response(attrs.asdict(await self._registered(address, base_model)))
        async with self._seats.using(found[0]):  # who registers is ready to wait until it is loaded
            return json_response(attrs.asdict(found[0]))

    async def _registered(self, address: Address, base_model: str) -> StoredModel:
        try:
            stored = self._store.add_model(address, base_model)
        except sqlite3.IntegrityError:
            # Registered by another request meanwhile.
            return self._store.models_called(address.name, address.entity, address.project)[0]
        try:
            async with self._seats.using(stored):
                return stored
        except BaseException:
            self._store.delete_model(stored.id)
            raise

    async def delete(self, http: Request) -> Response:
        """Delete a model that is not being trained, with its checkpoints."""
        stored = self._model(http)
        if self._work.busy(stored.id):
            raise RefusedError(409, f"{stored.address.uri} is being trained; delete it afterwards")
        await self._seats.remove(stored)
        self._store.delete_model(stored.id)
        self._server.inference.sampled.forget(stored.id)
        return Response(status_code=204)

    async def log(self, http: Request) -> Response:
        """Log trajectories of a split."""
        stored = self._model(http)
        given = await self._object(http)
        split = given.get("split") or "val"
        if not isinstance(split, str) or len(split) > MAX_NAME:
            raise RefusedError(422, f"split must be a name, got {shown(split)}", "split")
        groups = await asyncio.to_thread(groups_of, given.get("trajectory_groups"))
        async with self._seats.using(stored) as model:
            await model.log(groups, split=split)
        return Response(status_code=204)

    async def checkpoints(self, http: Request) -> Response:
        """List a model's checkpoints, oldest first or as asked."""
        stored = self._model(http)
        async with self._seats.using(stored) as model:
            steps = [checkpoint.step for checkpoint in await model.checkpoints()]
        items = [{"id": f"{stored.id}-{step}", "step": step, "metrics": {}} for step in steps]
        if http.query_params.get("order") == "desc":
            items.reverse()
        after = http.query_params.get("after")
        ids = [item["id"] for item in items]
        if after in ids:
            items = items[ids.index(after) + 1 :]
        return page_of(items, limit_of(http))

    async def delete_checkpoints(self, http: Request) -> Response:
        """Delete checkpoints by step; the newest stays."""
        stored = self._model(http)
        steps = (await self._object(http)).get("steps")
        few = isinstance(steps, list) and len(steps) <= MOST_STEPS
        if not few or not all(type(step) is int for step in steps or ()):
            said = f"steps must be a list of at most {MOST_STEPS} whole numbers, got {shown(steps)}"
            raise RefusedError(422, said, "steps")
        assert isinstance(steps, list)
        async with self._seats.using(stored) as model:
            existing = [c.step for c in await model.checkpoints()]
            keep = set(existing) - set(steps)
            gone = await self._seats.backend.delete_checkpoints(model, keep)
        missing = [step for step in steps if step not in gone]
        return json_response({"deleted_count": len(gone), "not_found_steps": missing})

    async def submit(self, http: Request) -> Response:
        """Accept a training job, once a key: what is accepted is on the disk."""
        given = await self._object(http)
        stored = self._known_model(given.get("model_id"))
        config = given.get("experimental_config", {})
        if not isinstance(config, dict | None):
            raise RefusedError(422, "experimental_config must be an object", "experimental_config")
        options = train_config(config or {}, self._server.losses)
        groups = given.get("trajectory_groups")
        await asyncio.to_thread(groups_of, groups)
        key = http.headers.get("idempotency-key") or None
        digest, kept, problem = await asyncio.to_thread(self._taken, stored.id, options, groups)
        job = await asyncio.to_thread(self._store.add_job, stored.id, options, kept, key, digest)
        if job is not None:
            if not problem or not self._failed_at_once(job, problem):
                self._work.add(job)
        elif (job := self._store.job_of(stored.id, str(key))) is None:
            raise RefusedError(404, f"{stored.address.uri} was deleted")
        return json_response({"id": job.id})

    def _failed_at_once(self, job: StoredJob, problem: str) -> bool:
        """Record that a job can't be trained on; False if the disk is full. Training then fails."""
        try:
            self._store.end(job.id, "failed", [("training_failed", {"error_message": problem})])
        except sqlite3.OperationalError:
            return False
        return True

    def _taken(
        self, model_id: str, options: Mapping[str, Any], groups: Any
    ) -> tuple[str, bytes, str | None]:
        """Return the digest of a job's request, its groups with the tokens of sampled choices, and
        why these can't be trained on.
        """
        filled = self._server.inference.sampled.filled(model_id, groups)
        digest = digest_of(options, orjson.dumps(groups))
        return digest, orjson.dumps(filled.groups), filled.problem()

    async def find_jobs(self, http: Request) -> Response:
        """Find a model's job by its idempotency key."""
        stored = self._known_model(http.query_params.get("model_id"))
        job = self._store.job_of(stored.id, http.query_params.get("idempotency_key", ""))
        return page_of([{"id": job.id, "state": job.state}] if job else [], MOST_ITEMS)

    async def events(self, http: Request) -> Response:
        """List a job's events after one, and wait for the next when there are none."""
        job_id = http.path_params["job_id"]
        after = number(http, "after", 0.0, float(1 << 53))
        wait_s = number(http, "wait", 0.0, LONGEST_WAIT_S)
        limit = limit_of(http)
        if self._store.job(job_id) is None:
            raise RefusedError(404, f"no training job {job_id!r}")
        items = self._store.events(job_id, int(after), limit + 1)
        if not items and wait_s and not self._is_over(job_id):
            with suppress(TimeoutError):
                news = asyncio.wait_for(self._work.listen(job_id).wait(), wait_s)
                await unless_gone(http, news)
            items = self._store.events(job_id, int(after), limit + 1)
        return page_of(items, limit)

    def _is_over(self, job_id: str) -> bool:
        job = self._store.job(job_id)
        return job is None or job.state in ("ended", "failed")

    async def sft(self, _: Request) -> Response:
        """Refuse supervised fine-tuning."""
        raise RefusedError(501, "supervised fine-tuning is not served here")

    async def names(self, _: Request) -> Response:
        """List the models, as OpenAI does."""
        entries = [_openai_model(stored) for stored in self._store.models()]
        return json_response({"object": "list", "data": entries})

    async def name(self, http: Request) -> Response:
        """Answer for one model, as OpenAI does."""
        stored, _ = self._server.inference.named(http.path_params["name"])
        return json_response(_openai_model(stored))

    async def chat(self, http: Request) -> Response:
        """Pass a chat completion on to the model's own endpoint."""
        context = http.headers.get(CONTEXT_HEADER, "")
        answer = self._server.inference.chat(await json_body(http), context)
        return await unless_gone(http, answer)

    async def _object(self, http: Request) -> dict[str, Any]:
        return await json_body(http, self._server.max_body_bytes)

    def _model(self, http: Request) -> StoredModel:
        return self._known_model(http.path_params["model_id"])

    def _known_model(self, model_id: Any) -> StoredModel:
        short = isinstance(model_id, str) and len(model_id) <= MAX_NAME
        stored = self._store.model(model_id) if short else None
        if stored is None:
            asked = model_id if isinstance(model_id, str) else shown(model_id)
            said = unknown("model", asked, [m.id for m in self._store.models()])
            raise RefusedError(404, said, "model_id", "model_not_found")
        return stored


def _openai_model(stored: StoredModel) -> dict[str, Any]:
    return {"id": stored.address.uri, "object": "model", "created": 0, "owned_by": stored.entity}
