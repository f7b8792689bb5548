"""Stands where vLLM's server would, for what needs a GPU or many lives: it answers at once with
made-up tokens, and refuses what vLLM's documentation does not allow.

    python fake_vllm.py --model DIR --port N ...      # with the arguments of vLLM's server

Settings from the environment: FAKE_TOKEN_S (seconds a token), FAKE_DIES (a status to end with at
once), FAKE_MUTE (tokens after which nothing more comes), FAKE_START_S (seconds before it listens),
FAKE_TOGETHER (requests that must run at once before any of them gets a token).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "model": str, "prompt": list, "max_tokens": int, "temperature": (int, float),
    "top_p": (int, float), "logprobs": int, "stop_token_ids": list, "stream": bool, "seed": int,
    "return_token_ids": bool, "return_tokens_as_token_ids": bool, "add_special_tokens": bool,
    "skip_special_tokens": bool, "prompt_logprobs": int,
}  # fmt: skip
LOGPROB = {"base": -0.5}
ADAPTER_LOGPROB = -0.25


class Refusal(Exception):  # noqa: N818
    """An answer in vLLM's form of an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.define
class FakeVllm:
    """The state of one server."""

    arguments: argparse.Namespace
    key: str
    token_s: float
    mute_after: int
    together: int
    all_run: asyncio.Event = attrs.field(factory=asyncio.Event)
    adapters: dict[str, str] = attrs.field(factory=dict)
    running: int = 0
    generated: int = 0
    prompted: int = 0
    aborted: int = 0
    asleep: bool = False

    def app(self) -> Starlette:
        """The routes that art-local asks for."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
            Route("/fake/state", self.state),
        ]
        if self.arguments.enable_sleep_mode and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            routes += [
                Route("/sleep", self.sleep, methods=["POST"]),
                Route("/wake_up", self.wake, methods=["POST"]),
            ]
        return Starlette(routes=routes, exception_handlers={Refusal: refused})

    async def health(self, _: Request) -> Response:
        return Response()

    async def state(self, _: Request) -> Response:
        keys = ("adapters", "running", "aborted", "asleep")
        found = {key: getattr(self, key) for key in keys}
        return JSONResponse(found | {"pid": os.getpid(), "arguments": sys.argv[1:]})

    async def metrics(self, _: Request) -> Response:
        figures = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0.25,
            "generation_tokens_total": self.generated,
            "prompt_tokens_total": self.prompted,
            "prefix_cache_queries_total": 2 * self.prompted,
            "prefix_cache_hits_total": self.prompted,
        }
        lines = [f'vllm:{k}{{engine="0",model_name="base"}} {float(v)}' for k, v in figures.items()]
        return PlainTextResponse("# HELP of something\n" + "\n".join(lines) + "\n")

    async def models(self, http: Request) -> Response:
        self._check_key(http)
        names = ["base", *self.adapters]
        return JSONResponse({"object": "list", "data": [{"id": name} for name in names]})

    async def tokenize(self, http: Request) -> Response:
        body = await http.json()
        return JSONResponse({"tokens": list(body["prompt"].encode())})

    async def load(self, http: Request) -> Response:
        body = await self._body(http, {"lora_name": str, "lora_path": str, "load_inplace": bool})
        name, path = body["lora_name"], Path(body["lora_path"])
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
            raise Refusal(404, "Not Found")
        if self.asleep:
            raise Refusal(500, "an adapter came while the server sleeps")
        if not (path / "adapter_config.json").is_file():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = orjson.loads((path / "adapter_config.json").read_bytes()).get("r", 1)
        if rank > self.arguments.max_lora_rank:
            raise Refusal(500, f"LoRA rank {rank} is greater than max_lora_rank")
        if name in self.adapters and not body.get("load_inplace"):
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        self.adapters[name] = str(path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, http: Request) -> Response:
        body = await self._body(http, {"lora_name": str})
        if self.adapters.pop(body["lora_name"], None) is None:
            raise Refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return PlainTextResponse("Success")

    async def sleep(self, http: Request) -> Response:
        if http.query_params.get("level") != "1":
            raise Refusal(400, "level 1 keeps the weights; 2 would drop them")
        while self.running and http.query_params.get("mode") == "wait":
            await asyncio.sleep(0.01)
        self.asleep = True
        return JSONResponse({"status": "sleeping", "level": 1})

    async def wake(self, _: Request) -> Response:
        if not self.asleep:
            raise Refusal(500, "nothing sleeps")
        self.asleep = False
        return JSONResponse({"status": "awake", "tags": None})

    async def completions(self, http: Request) -> Response:
        body = await self._body(http, FIELDS)
        if self.asleep:
            raise Refusal(500, "a request came while the server sleeps")
        if body["model"] not in ("base", *self.adapters):
            raise Refusal(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > self.arguments.max_model_len:
            raise Refusal(400, "This model's maximum context length is exceeded")
        chunks = self._chunks(http, body)
        if body["stream"]:
            return StreamingResponse(self._events(chunks), media_type="text/event-stream")
        whole = [chunk async for chunk in chunks]
        if not whole:
            return Response(status_code=499)
        answer = joined(whole)
        if "prompt_logprobs" in body:
            logprob = LOGPROB.get(body["model"], ADAPTER_LOGPROB)
            entries = [{str(t): {"logprob": logprob, "rank": 1}} for t in body["prompt"]]
            answer["choices"][0]["prompt_logprobs"] = [None, *entries[1:]]
        return JSONResponse(answer)

    async def _events(self, chunks: AsyncGenerator[dict[str, Any], None]) -> Any:
        async for chunk in chunks:
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    async def _chunks(
        self, http: Request, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """One chunk per token: the prompt's last token counted up, until the limit or a stop."""
        self.running += 1
        self.prompted += len(body["prompt"])
        ended = False
        try:
            if self.running >= self.together:
                self.all_run.set()
            if body["max_tokens"] > 1:  # the first request after the start asks for one
                await self.all_run.wait()
            for index in range(body["max_tokens"]):
                if index == self.mute_after:
                    await asyncio.sleep(3600)
                await asyncio.sleep(self.token_s)
                if not body["stream"] and await http.is_disconnected():
                    return
                self.generated += 1
                token = (body["prompt"][-1] + 1 + index) % 256
                stops = token in body["stop_token_ids"]
                last = stops or index == body["max_tokens"] - 1
                ended = last
                yield chunk_of(body, token, "stop" if stops else "length" if last else None)
                if last:
                    return
        finally:
            self.running -= 1
            self.aborted += not ended

    async def _body(
        self, http: Request, fields: Mapping[str, type | tuple[type, ...]]
    ) -> dict[str, Any]:
        self._check_key(http)
        body: dict[str, Any] = orjson.loads(await http.body())
        for name, value in body.items():
            if name not in fields or not isinstance(value, fields[name]):
                raise Refusal(400, f"{name}={value!r} is not in the documentation")
        return body

    def _check_key(self, http: Request) -> None:
        if http.headers.get("authorization") != f"Bearer {self.key}":
            raise Refusal(401, "Unauthorized")


def chunk_of(body: Mapping[str, Any], token: int, finish: str | None) -> dict[str, Any]:
    """One token, as a chunk of a completion."""
    logprob = LOGPROB.get(body["model"], ADAPTER_LOGPROB)
    top = {f"token_id:{token}": logprob} | {
        f"token_id:{(token + n) % 256}": logprob - n for n in range(1, body["logprobs"])
    }
    logprobs = {
        "token_logprobs": [logprob], "tokens": [f"token_id:{token}"], "top_logprobs": [top]
    }  # fmt: skip
    choice = {
        "index": 0, "text": chr(token), "logprobs": logprobs, "finish_reason": finish,
        "token_ids": [token],
    }  # fmt: skip
    return {"object": "text_completion", "model": body["model"], "choices": [choice]}


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """All chunks of a completion as one answer."""
    choices = [chunk["choices"][0] for chunk in chunks]
    logprobs = {
        key: [choice["logprobs"][key][0] for choice in choices] for key in choices[0]["logprobs"]
    }
    ids = [choice["token_ids"][0] for choice in choices]
    whole = {**choices[-1], "token_ids": ids, "logprobs": logprobs}
    return {**chunks[0], "choices": [whole]}


async def refused(_: Request, error: Exception) -> Response:
    """Vllm's form of an error."""
    assert isinstance(error, Refusal)
    body = {"error": {"message": str(error), "type": "BadRequestError", "code": error.status}}
    return JSONResponse(body, error.status)


def parsed() -> argparse.Namespace:
    """Read the arguments; one that vLLM does not have is an error."""
    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "host", "dtype", "logprobs-mode"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-model-len", "max-num-seqs", "max-loras", "max-cpu-loras"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--max-lora-rank", type=int, choices=(1, 8, 16, 32, 64, 128, 256, 320, 512))
    parser.add_argument("--generation-config", choices=("vllm",), required=True)
    parser.add_argument("--structured-outputs-config", type=orjson.loads, required=True)
    parser.add_argument("--gpu-memory-utilization", type=float)
    for name in (
        "enable-lora", "enforce-eager", "enable-sleep-mode", "disable-uvicorn-access-log",
        "enable-prompt-tokens-details",
    ):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    if "FAKE_DIES" in os.environ:
        print("RuntimeError: no memory for the weights", flush=True)
        sys.exit(int(os.environ["FAKE_DIES"]))
    time.sleep(float(os.environ.get("FAKE_START_S", "0")))
    given = parsed()
    fake = FakeVllm(
        given,
        os.environ["VLLM_API_KEY"],
        float(os.environ.get("FAKE_TOKEN_S", "0")),
        int(os.environ.get("FAKE_MUTE", "-1")),
        int(os.environ.get("FAKE_TOGETHER", "0")),
    )
    print(f"serving {given.model} on {given.port}", flush=True)
    uvicorn.run(fake.app(), host=given.host, port=given.port, log_level="warning")
