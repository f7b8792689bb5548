"""Requests to this machine pass no proxy."""

from __future__ import annotations

import os
import urllib.request

import openai
import pytest

from art_core.endpoint.host import EndpointHost
from art_core.endpoint.listener import pass_by_proxies

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch) -> None:
    for name in NAMES:
        # First set, so that what a test leaves behind is taken away.
        for each in (name, name.upper()):
            monkeypatch.setenv(each, "")
            monkeypatch.delenv(each)


async def test_an_agents_own_client_reaches_the_endpoint_beside_a_proxy(
    monkeypatch, models, engine
) -> None:
    engine.lines = ["yes"]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with EndpointHost(models) as host:
        async with openai.AsyncOpenAI(
            base_url=host.base_url, api_key=host.api_key, max_retries=0
        ) as client:
            answer = await client.chat.completions.create(
                model="agent", messages=[{"role": "user", "content": "hi"}]
            )
    assert answer.choices[0].message.content == "yes"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"no_proxy": "example.com"}, {"no_proxy": "example.com"}),
        (
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com, localhost"},
            dict.fromkeys(("no_proxy", "NO_PROXY"), "example.com,localhost,127.0.0.1,::1"),
        ),
        (
            {"all_proxy": "http://p:1", "NO_PROXY": "a", "no_proxy": "b"},
            dict.fromkeys(("no_proxy", "NO_PROXY"), "b,a,127.0.0.1,localhost,::1"),
        ),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, {"NO_PROXY": "*"}),
    ],
)
def test_this_machine_is_added_to_what_has_no_proxy(given, expected, monkeypatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    pass_by_proxies()
    assert {name: os.environ[name] for name in expected} == expected
    assert ("NO_PROXY" in os.environ) == ("NO_PROXY" in expected)
    if given.get("http_proxy") or given.get("all_proxy"):
        assert urllib.request.proxy_bypass("127.0.0.1:80")
