"""A recording of a scripted engine, which checks what real clients left in it.

`make doors` installs the clients and runs these tests; without the clients they are not collected.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest
from scripted import ByteTokenizer, OneModel, ScriptedEngine

import art_core as art
from art_core.client.recorder import Recorder, Recording
from art_core.data.trajectory import tokens_of
from art_core.endpoint.answer import read_answer
from art_core.endpoint.constraint import Constraint
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.strict_json import whole_json
from art_core.testing.echo import EchoBackend

if find_spec("jsonschema"):
    from jsonschema import Draft202012Validator

CLIENTS = ("agents", "anthropic", "instructor", "litellm", "pydantic_ai", "smolagents")
collect_ignore_glob = [] if all(map(find_spec, CLIENTS)) else ["test_*.py"]
UNCONSTRAINED = False
"""Whether recordings leave out what forces the form of an answer."""


@attrs.define
class Forms:
    """Keeps the constraints of requests."""

    asked: list[Constraint] = attrs.field(factory=list)

    def grammar(self, constraint: Constraint, prompt_ids: Sequence[int]) -> str:
        self.asked.append(constraint)
        return "start: /(?s:.*)/"


def meets(line: str, constraint: Constraint) -> bool:
    """Whether a constraint allows an answer: calls of its functions, or JSON by its schema."""
    functions = {tool["function"]["name"]: {} for tool in constraint.functions}
    called = {call.name for call in read_answer(line, functions, None).calls}
    if called or constraint.form is None:
        return called <= functions.keys() and bool(called or not constraint.required)
    value, schema = whole_json(line), json.loads(constraint.form.text)
    return value is not None and Draft202012Validator(schema).is_valid(value)


@attrs.frozen
class Door:
    """The way of a client into a recording."""

    models: OneModel
    recorder: Recorder
    directory: Path

    @asynccontextmanager
    async def opened(
        self, *lines: str, forced: bool = False, turns: Sequence[int] = ()
    ) -> AsyncGenerator[art.Endpoint, None]:
        """Record a client that gets these answers; check the recorded tokens, and train on them.
        `turns` are the numbers of answers of the conversations, in any order.
        """
        self.models.engine = engine = ScriptedEngine(lines=[*lines], context_length=200_000)
        self.models.grammars = forms = Forms()
        trajectory = art.Trajectory()
        recording = Recording(trajectory=trajectory, unconstrained=forced and UNCONSTRAINED)
        with self.recorder.recorded(recording) as endpoint:
            yield endpoint
        assert len(engine.asked) == len(lines)
        assert forms.asked or not forced
        assert all(any(meets(line, each) for line in lines) for each in forms.asked)
        recorded = [
            [tokens_of(item) for item in history.messages_and_choices if not isinstance(item, dict)]
            for history in trajectory.histories()
        ]
        assert not turns or sorted(map(len, recorded)) == sorted(turns)
        sampled = [(tuple(ids), (*line.encode(), 257)) for (ids, *_), line in zip(
            engine.asked, lines, strict=True)]  # fmt: skip
        found = [(turn.prompt_ids, turn.completion_ids) for each in recorded for turn in each]
        # Conversations grow beside each other.
        assert (sorted(found) if turns else found) == (sorted(sampled) if turns else sampled)
        await self._train(trajectory)

    async def _train(self, trajectory: art.Trajectory) -> None:
        other = copy.deepcopy(trajectory)
        trajectory.reward, other.reward = 1.0, 0.0
        backend = EchoBackend()
        async with art.TrainableModel(
            name="door", project="p", base_model="b", base_path=self.directory, sinks=[]
        ) as model:
            await model.register(backend)
            result = await model.train([art.TrajectoryGroup([trajectory, other])])
        await backend.close()
        assert result.metrics["data/step_num_gradient_steps"] == 1


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[OneModel, Recorder]]:
    models = OneModel(ScriptedEngine(), ByteTokenizer())
    with EndpointHost(models) as host:
        endpoint = art.Endpoint(base_url=host.base_url, api_key=host.api_key, model_name="agent")
        with Recorder(endpoint, trainable=True) as recorder:
            yield models, recorder


@pytest.fixture
def door(served: tuple[OneModel, Recorder], tmp_path: Path) -> Door:
    return Door(*served, tmp_path)
