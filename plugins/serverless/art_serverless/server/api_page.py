"""The API described: for tools as OpenAPI, for people as one plain page."""

from __future__ import annotations

import html
import re
from typing import Any

import attrs

from art_serverless.protocol import JOBS, MODELS

TEXT, NUMBER, FLAG, OBJECT = "string", "integer", "boolean", "object"
_NAMES_IN_PATH = re.compile(r"{(\w+)}")


@attrs.frozen
class Operation:
    """One request: method, path, what it does, the fields of its body, what it answers."""

    method: str
    path: str
    summary: str
    body: dict[str, str] = attrs.field(factory=dict)
    query: dict[str, str] = attrs.field(factory=dict)
    answer: str = "{}"


OPERATIONS = (
    Operation(
        "POST",
        MODELS,
        "register a model, or find it",
        {
            "entity": TEXT,
            "project": TEXT,
            "name": TEXT,
            "base_model": TEXT,
            "return_existing": FLAG,
        },
        answer="{id, entity, project, name, base_model, run_id}",
    ),
    Operation("DELETE", MODELS + "/{model_id}", "delete a model and its files", answer="204"),
    Operation(
        "POST",
        MODELS + "/{model_id}/log",
        "keep trajectories in the server's own log",
        {"model_id": TEXT, "trajectory_groups": "array", "split": TEXT},
        answer="204",
    ),
    Operation(
        "GET",
        MODELS + "/{model_id}/checkpoints",
        "list checkpoints",
        query={"after": TEXT, "limit": NUMBER, "order": TEXT},
        answer="{data: [{id, step, metrics}], has_more}",
    ),
    Operation(
        "DELETE",
        MODELS + "/{model_id}/checkpoints",
        "delete checkpoints; the newest stays",
        {"steps": "array"},
        answer="{deleted_count, not_found_steps}",
    ),
    Operation(
        "POST",
        JOBS,
        "run a training step; the header Idempotency-Key names the request. Choices "
        "are as chat completions answered them, after the same messages, or hold "
        "prompt_token_ids, token_ids and logprobs.content",
        {"model_id": TEXT, "trajectory_groups": "array", "experimental_config": OBJECT},
        answer="{id}",
    ),
    Operation(
        "GET",
        JOBS,
        "find the job that a request made",
        query={"model_id": TEXT, "idempotency_key": TEXT},
        answer="{data: [{id, state}], has_more}",
    ),
    Operation(
        "GET",
        JOBS + "/{job_id}/events",
        "what a job told after an event; waits up to `wait` seconds for something to tell",
        query={"after": TEXT, "limit": NUMBER, "wait": "number"},
        answer="{data: [{id, type, data}], has_more}",
    ),
    Operation("GET", "/models", "list the models, as OpenAI does", answer="{object, data}"),
    Operation("GET", "/models/{name}", "one of them, by its name", answer="{id, object, owned_by}"),
    Operation(
        "POST",
        "/chat/completions",
        "sample, as OpenAI does; model: wandb-artifact:///entity/project/name[:stepN], or name[@N]",
        {"model": TEXT, "messages": "array"},
        answer="a chat completion, or its chunks",
    ),
)


def openapi() -> dict[str, Any]:
    """Return the API as OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(f"/v1{operation.path}", {})[operation.method.lower()] = _described(
            operation
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "art serve", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": TEXT}}
        for name in _NAMES_IN_PATH.findall(operation.path)
    ]
    in_query = [
        {"name": name, "in": "query", "schema": {"type": kind}}
        for name, kind in operation.query.items()
    ]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": in_path + in_query,
        "responses": {"2XX": {"description": operation.answer}},
    }
    if operation.body:
        fields = {name: {"type": kind} for name, kind in operation.body.items()}
        schema = {"type": OBJECT, "properties": fields}
        described["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return described


def page() -> str:
    """Return the API as one page of HTML."""
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(cell)}</td>"
            for cell in (
                operation.method,
                f"/v1{operation.path}",
                operation.summary,
                ", ".join(operation.body or operation.query),
                operation.answer,
            )
        )
        + "</tr>"
        for operation in OPERATIONS
    )
    heads = "".join(f"<th>{head}</th>" for head in ("", "path", "does", "takes", "answers"))
    style = "body{font:16px sans-serif;margin:2em}td,th{text-align:left;padding:.3em 1em .3em 0}"
    return (
        f"<!doctype html><html lang='en'><title>art serve</title><style>{style}</style>"
        f"<h1>art serve</h1><p>Send <code>Authorization: Bearer &lt;key&gt;</code>. For tools: "
        f"<a href='/openapi.json'>/openapi.json</a>; for Prometheus: /metrics.</p>"
        f"<table><tr>{heads}</tr>{rows}</table></html>"
    )
