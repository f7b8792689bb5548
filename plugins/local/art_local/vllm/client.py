"""A client of vLLM's server: token ids in, tokens out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import orjson

from art_core.base.errors import EngineError
from art_core.endpoint.engine import FinishReason, Sampling, Token

CONNECT_S = 10.0
FINISHES: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}


def completion_body(
    prompt_ids: Sequence[int], sampling: Sampling, model: str, ends: Sequence[int]
) -> dict[str, Any]:
    """Return the body of POST /v1/completions; `ends` are the model's own end tokens."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "logprobs": sampling.top_logprobs,
        "stop_token_ids": sorted({*ends, *sampling.stop_token_ids}),
        "stream": sampling.stream,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.grammar is not None:
        body["structured_outputs"] = {"grammar": sampling.grammar}
    return body


def tokens_of(answer: Mapping[str, Any], top_logprobs: int) -> list[Token]:
    """Return the tokens of a completion, or of a chunk of one; the last may have `finish`.

    Raises EngineError for the answer of a server that does not know `return_token_ids`.
    """
    if "error" in answer:
        raise EngineError(f"vLLM refused the request: {_message(answer)}")
    try:
        (choice,) = answer["choices"]
        ids, finish = choice["token_ids"] or [], choice["finish_reason"]
        found = choice["logprobs"]
        logprobs = found["token_logprobs"] if ids else []
        tops = found["top_logprobs"] if ids and top_logprobs else [None] * len(ids)
        tokens = [
            Token(token, logprob, _alternatives(top, top_logprobs))
            for token, logprob, top in zip(ids, logprobs, tops, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the server's answer has no token ids with log-probs ({type(error).__name__}: "
            f"{error}): {str(dict(answer))[:300]}",
            "The engine needs vLLM 0.20 or later.",
        ) from error
    if finish is not None:
        if finish not in FINISHES or not tokens:
            raise EngineError(f"vLLM ended the sequence with {finish!r}")
        cached = _cached(answer)
        tokens[-1] = attrs.evolve(tokens[-1], finish=FINISHES[finish], cached_tokens=cached)
    return tokens


def scoring_body(ids: Sequence[int], model: str) -> dict[str, Any]:
    """Return the body of POST /v1/completions that asks for the log-probs of a text."""
    sampling = Sampling(max_tokens=1, stream=False)
    return completion_body(ids, sampling, model, ()) | {"prompt_logprobs": 0}


def scores_of(answer: Mapping[str, Any], ids: Sequence[int]) -> list[float]:
    """Return the log-prob of each token of a scored text but the first; EngineError if the answer
    has none.
    """
    try:
        (choice,) = answer["choices"]
        entries = choice["prompt_logprobs"][1:]
        return [
            float(entry[str(token)]["logprob"])
            for entry, token in zip(entries, ids[1:], strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "the server's answer has no log-probs of the prompt "
            f"({type(error).__name__}: {error}): {str(dict(answer))[:300]}",
            "The engine needs vLLM 0.20 or later.",
        ) from error


def _cached(answer: Mapping[str, Any]) -> int | None:
    """Return the cached tokens of the prompt, which answers that are not streamed contain."""
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    cached: int | None = details.get("cached_tokens")
    return cached


def _alternatives(top: Mapping[str, float] | None, count: int) -> tuple[tuple[int, float], ...]:
    """Return the most likely tokens; the server adds the sampled one if it is not among them."""
    if not top or not count:
        return ()
    pairs = [(int(name.removeprefix("token_id:")), logprob) for name, logprob in top.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def _message(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, Mapping) else answer
    return str(error.get("message", error) if isinstance(error, Mapping) else error)[:500]


class VllmClient:
    """Sends requests to one server, from one event loop."""

    def __init__(self, url: str, api_key: str | None) -> None:
        import httpx2

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """POST /v1/completions; yield the whole answer, or each chunk of a streamed one.

        Closing the generator closes the connection, which aborts the request in the server.
        """
        async with self._errors(), self._opened("/v1/completions", body) as response:
            if not body["stream"]:
                yield orjson.loads(await response.aread())
                return
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if data:
                    yield orjson.loads(data)

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter from a directory that the server can read; replaces a loaded one."""
        body = {"lora_name": name, "lora_path": path, "load_inplace": True}
        await self._post("/v1/load_lora_adapter", body)

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter; running requests finish with it."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def sleep(self) -> None:
        """Free the server's device memory, once its requests have ended."""
        await self._post("/sleep?level=1&mode=wait", None)

    async def wake(self) -> None:
        """Allocate the server's device memory again."""
        await self._post("/wake_up", None)

    async def health(self) -> None:
        """Raise EngineError unless the server reports that it is healthy."""
        async with self._errors():
            await _checked(await self._http.get("/health"))

    async def models(self) -> list[dict[str, Any]]:
        """Return the models and adapters that the server lists."""
        async with self._errors():
            response = await _checked(await self._http.get("/v1/models"))
            return list(orjson.loads(response.content)["data"])

    async def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens by the server's own tokenizer."""
        body = {"prompt": text, "add_special_tokens": False}
        async with self._errors():
            response = await _checked(await self._http.post("/tokenize", json=body))
            return list(orjson.loads(response.content)["tokens"])

    async def metrics(self) -> str:
        """Return the server's metrics, in Prometheus' text form."""
        async with self._errors():
            return (await _checked(await self._http.get("/metrics"))).text

    async def close(self) -> None:
        """Close the connections; running requests are aborted."""
        await self._http.aclose()

    async def _post(self, path: str, body: Mapping[str, Any] | None) -> None:
        async with self._errors():
            await _checked(await self._http.post(path, json=body))

    @asynccontextmanager
    async def _opened(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        async with self._http.stream(
            "POST", path, content=orjson.dumps(body), headers={"Content-Type": "application/json"}
        ) as response:
            yield await _checked(response)

    @asynccontextmanager
    async def _errors(self) -> AsyncGenerator[None, None]:
        """Turn errors of the HTTP library into ServerGoneError."""
        import httpx2

        try:
            yield
        except (httpx2.TransportError, httpx2.StreamError) as error:
            reason = str(error) or type(error).__name__
            raise ServerGoneError(
                f"the connection to vLLM at {self.url} failed: {reason}"
            ) from error


class ServerGoneError(EngineError):
    """The connection to the server broke."""


class VllmStatusError(EngineError):
    """The server answered with an error; `status` is the HTTP status."""

    status = 0


async def _checked(response: Any) -> Any:
    if response.status_code < 400:
        return response
    raw = await response.aread()
    try:
        message = _message(orjson.loads(raw))
    except orjson.JSONDecodeError:
        message = raw.decode(errors="replace")[:300]
    error = VllmStatusError(
        f"vLLM answered {response.status_code} to {response.request.url.path}: {message}"
    )
    error.status = response.status_code
    raise error
