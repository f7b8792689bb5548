"""An endpoint with a scripted engine, and ways to ask it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from scripted import ByteTokenizer, OneModel, ScriptedEngine

from art_core.endpoint.engine import ServedModel
from art_core.endpoint.host import EndpointHost


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def models(engine: ScriptedEngine, tokenizer: ByteTokenizer) -> OneModel:
    return OneModel(engine, tokenizer)


class Current:
    """The models of the test that runs now: one server is enough for all tests."""

    models: OneModel

    def names(self) -> list[str]:
        return self.models.names()

    async def resolve(self, name: str) -> ServedModel:
        return await self.models.resolve(name)


@pytest.fixture(scope="session")
def running() -> Iterator[tuple[EndpointHost, Current]]:
    current = Current()
    with EndpointHost(current, request_timeout_s=2.0, max_body_bytes=20_000) as host:
        yield host, current


@pytest.fixture
def host(running: tuple[EndpointHost, Current], models: OneModel) -> EndpointHost:
    host, current = running
    current.models = models
    return host


@pytest.fixture
async def client(host: EndpointHost) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    async with openai.AsyncOpenAI(
        base_url=host.base_url, api_key=host.api_key, max_retries=0
    ) as opened:
        yield opened


@pytest.fixture
async def http(host: EndpointHost) -> AsyncGenerator[httpx2.AsyncClient, None]:
    headers = {"Authorization": f"Bearer {host.api_key}"}
    async with httpx2.AsyncClient(base_url=host.base_url, headers=headers) as opened:
        yield opened


@pytest.fixture
def ask(client: openai.AsyncOpenAI) -> Callable[..., Any]:
    """Ask the endpoint with the smallest request; keywords are added to it."""

    async def asked(**options: Any) -> Any:
        defaults = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
        return await client.chat.completions.create(**{**defaults, **options})

    return asked


@pytest.fixture
def refused(http: httpx2.AsyncClient) -> Callable[..., Any]:
    """Send a body that must be refused; returns the status and the error object."""

    async def sent(**options: Any) -> tuple[int, dict[str, Any]]:
        defaults = {"model": "agent", "messages": [{"role": "user", "content": "hi"}]}
        answer = await http.post("/chat/completions", json={**defaults, **options})
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return answer.status_code, error

    return sent
