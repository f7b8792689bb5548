"""The context of a request: sent by the client in a header, passed to the engine."""

from __future__ import annotations

import attrs
import pytest

from art_core.client.openai_client import asking_for_tokens
from art_core.endpoint.engine import CONTEXT_HEADER, request_context
from art_core.model.model import Model


@pytest.fixture
def model(tmp_path):
    return Model(name="asker", project="demo", base_path=tmp_path, sinks=[])


def test_the_header_is_the_context_of_the_active_builder(model):
    with model.metrics_builder("eval").activate_context():
        _, options = asking_for_tokens({}, {"headers": {"X-Mine": "1"}})
    assert options["headers"] == {CONTEXT_HEADER: "eval", "X-Mine": "1"}


def test_a_header_that_the_caller_gives_stays(model):
    with model.metrics_builder("eval").activate_context():
        _, options = asking_for_tokens({}, {"headers": {CONTEXT_HEADER: "train"}})
    assert options["headers"] == {CONTEXT_HEADER: "train"}


def test_there_is_no_header_without_a_context(model):
    with model.metrics_builder().activate_context():
        assert "headers" not in asking_for_tokens({}, {})[1]
    assert "headers" not in asking_for_tokens({}, {})[1]


@attrs.define
class Listening:
    """Resolves names as another, and keeps the context in which it was asked."""

    inner: object
    heard: list[str] = attrs.field(factory=list)

    def names(self):
        return self.inner.names()

    async def resolve(self, name):
        self.heard.append(request_context.get())
        return await self.inner.resolve(name)


async def test_whoever_serves_a_request_knows_its_context(running, models, ask):
    running[1].models = listening = Listening(models)
    for headers in ({CONTEXT_HEADER: "eval"}, None, {CONTEXT_HEADER: "train"}):
        await ask(extra_headers=headers)
    assert listening.heard == ["eval", "", "train"]
