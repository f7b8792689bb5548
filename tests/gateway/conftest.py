"""A model of the echo, its gateway, and clients that know only HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import httpx2
import pytest

import art_core as art
from art_core.gateway.gateway import Gateway
from art_core.testing.echo import EchoBackend


@pytest.fixture
async def model(tmp_path) -> AsyncIterator[art.TrainableModel]:
    backend = EchoBackend()
    model = art.TrainableModel(
        name="agent", project="p", base_model="base", base_path=tmp_path, sinks=[]
    )
    await model.register(backend)
    yield model
    await model.close()
    await backend.close()


@pytest.fixture
async def gateway(model) -> AsyncIterator[Gateway]:
    async with model.gateway() as gateway:
        yield gateway


@attrs.define
class Client:
    """Asks a gateway, with its key or an attempt's."""

    http: httpx2.AsyncClient
    url: str
    key: str

    async def post(self, path, body=None, *, key=None, **headers):
        headers |= {"Authorization": f"Bearer {key or self.key}"}
        return await self.http.post(self.url + path, json=body or {}, headers=headers)

    async def get(self, path, *, key=None):
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return await self.http.get(self.url + path, headers=headers)

    async def begin(self, scenario_id="s", **body):
        answer = await self.post("/attempts", {"scenario_id": scenario_id, **body})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def chat(self, attempt, text, **body):
        messages = [{"role": "user", "content": text}]
        request = {"model": attempt["model_name"], "messages": messages, **body}
        return await self.post("/v1/chat/completions", request, key=attempt["api_key"])

    async def end(self, attempt, **ending):
        return await self.post(f"/attempts/{attempt['id']}/end", ending)


@pytest.fixture
async def client(gateway) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient() as http:
        yield Client(http, gateway.url, gateway.api_key)
