"""Scripted conversations over the real endpoint and the real client, and a judge of what is
trained.

The engine "samples" the ids that a script gives it: what is tried are templates, clients and
merging, not weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs
from families import Family

import art_core as art
from art_core.client.openai_client import openai_client
from art_core.data.trajectory import ChoiceTokens
from art_core.endpoint.engine import Sampling, ServedModel, Token
from art_core.endpoint.host import EndpointHost
from art_core.endpoint.messages import checked_messages
from art_core.endpoint.thoughts import Spellings, in_content
from art_core.rl.batch import training_batch
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look somewhere.",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
        },
    }
]


@attrs.frozen
class Call:
    """What the engine was given, and what it sampled."""

    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int


@attrs.define
class Engine:
    """Samples the `answers` in turn; keeps every call."""

    answers: list[list[int]] = attrs.field(factory=list)
    calls: list[Call] = attrs.field(factory=list)
    version: int = 0
    context_length: int = 100_000

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, adapter: str
    ) -> AsyncGenerator[Token, None]:
        ids = self.answers.pop(0)
        first = 7 * len(self.calls)
        logprobs = [-(first + place) / 64 for place in range(len(ids))]
        version = int(adapter.removeprefix("step-"))
        self.calls.append(Call(tuple(prompt_ids), tuple(ids), tuple(logprobs), version))
        for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True)):
            ended = "stop" if token in sampling.stop_token_ids else "length"
            yield Token(token, logprob, (), ended if place == len(ids) - 1 else None)

    async def close(self) -> None:
        pass


@attrs.define
class Models:
    """Serves an engine with the tokenizer of one family as `agent`, the newest weights."""

    engine: Engine
    kind: Family | None = None

    def names(self) -> list[str]:
        return ["agent"]

    async def resolve(self, name: str) -> ServedModel:
        version = self.engine.version
        assert self.kind is not None
        return ServedModel(
            engine=self.engine,
            tokenizer=self.kind.tokenizer,
            adapter=f"step-{version}",
            name=f"agent@{version}",
            policy_version=version,
        )


@attrs.frozen
class Answer:
    """An answer to sample: its ids as a model of this family would write `text`; with `odd`, in
    other tokens than the tokenizer's own; with `cut`, without an end token.
    """

    text: str
    odd: int | None = None
    cut: bool = False

    def ids(self, kind: Family) -> list[int]:
        # The template of Mistral puts a space before an answer: so does its model.
        spaced = kind.name == "mistral" and not self.text.startswith("[")
        text = f" {self.text}" if spaced else self.text
        ids = kind.encode(text) if self.odd is None else kind.sampled(text, self.odd)
        end = kind.tokenizer.eos_token_id
        ids = [*ids, end][: [*ids, end].index(end)]
        return ids if self.cut and ids else [*ids, end]


@attrs.frozen
class User:
    """A message of the user; it asks for the next answer."""

    text: str


@attrs.frozen
class Result:
    """What the tools of the last answer gave back; it asks for the next answer."""

    text: str


@attrs.frozen
class Elsewhere:
    """An answer that another attempt gets to the last question."""

    answer: Answer


@attrs.frozen
class Step:
    """A training step between two turns: the answers after it come from newer weights."""


@attrs.frozen(kw_only=True)
class Outcome:
    """A conversation as it went: the trajectory, the engine's calls, what is trained of it."""

    trajectory: art.Trajectory
    calls: list[Call]
    sequences: tuple[TokenSequence, ...]
    breaks: int
    metrics: dict[str, float]


class Stage:
    """An endpoint, a client and a loop for them, kept while scripts are played."""

    def __init__(self, **options: Any) -> None:
        self.engine = Engine()
        self.models = Models(self.engine)
        self.host = EndpointHost(self.models, **options).start()
        self.runner = asyncio.Runner()
        endpoint = art.Endpoint(
            base_url=self.host.base_url, api_key=self.host.api_key, model_name="agent"
        )
        self.client = openai_client(endpoint, trainable=True)

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()
        self.host.stop()

    def play(self, kind: Family, script: Sequence[Any], **options: Any) -> Outcome:
        """Play a script with its answers; returns what is trained of it."""
        self.models.kind = kind
        self.engine.calls, self.engine.answers, self.engine.version = [], [], 0
        trajectory = self.runner.run(self._play(kind, script, options))
        trajectory.reward = 1.0
        other = art.Trajectory(messages_and_choices=trajectory.messages_and_choices[:1], reward=0.0)
        config = TrainConfig(mask_truncated=False)
        batch = training_batch([art.TrajectoryGroup([trajectory, other])], config)
        return Outcome(
            trajectory=trajectory,
            calls=self.engine.calls,
            sequences=batch.sequences,
            breaks=int(batch.metrics["data/prefix_breaks"]),
            metrics=batch.metrics,
        )

    async def _play(
        self, kind: Family, script: Sequence[Any], options: dict[str, Any]
    ) -> art.Trajectory:
        trajectory = art.Trajectory(messages_and_choices=[])
        for event in script:
            if isinstance(event, Step):
                self.engine.version += 1
            elif isinstance(event, Elsewhere):
                await self._ask(kind, event.answer, trajectory.messages()[:-1], options)
                self.engine.calls.pop()
            elif not isinstance(event, Answer):
                trajectory.messages_and_choices += _messages(event, trajectory)
            else:
                choice = await self._ask(kind, event, trajectory.messages(), options)
                trajectory.messages_and_choices.append(choice)
        return trajectory

    async def _ask(
        self, kind: Family, answer: Answer, messages: list[Any], options: dict[str, Any]
    ) -> Any:
        self.engine.answers.append(answer.ids(kind))
        completion = await self.client.chat.completions.create(
            model="agent", messages=messages, **options
        )
        return completion.choices[0]


def _messages(event: Any, trajectory: art.Trajectory) -> list[dict[str, Any]]:
    if isinstance(event, User):
        return [{"role": "user", "content": event.text}]
    if isinstance(event, Result):
        calls = trajectory.messages()[-1]["tool_calls"]
        return [{"role": "tool", "content": event.text, "tool_call_id": c["id"]} for c in calls]
    return [dict(event)]


def false_tokens(sequences: Sequence[TokenSequence], calls: Sequence[Call]) -> int:
    """Count what is trained or read otherwise than the engine had it: 0 is the only good number.

    Each call must stand in a sequence, in order: all before its answer is the prompt that the
    engine was given, its answer is what was sampled with the log-probs of the sampling, and nothing
    between two answers is trained.
    """
    wrong, place, at = 0, 0, 0
    for call in calls:
        if place < len(sequences) and at == len(sequences[place].token_ids):
            place, at = place + 1, 0
        if place == len(sequences):
            return wrong + len(call.sampled)
        row, start = sequences[place], len(call.prompt)
        end = start + len(call.sampled)
        wrong += _differences(row.token_ids[:end], call.prompt + call.sampled)
        wrong += sum(row.trainable[at:start])
        wrong += _differences(row.trainable[start:end], (True,) * len(call.sampled))
        wrong += _differences(row.logprobs[start:end], call.logprobs)
        at = end
    return wrong + sum(map(len, (s.token_ids for s in sequences[place + 1 :])))


def _differences(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    unequal = sum(a != b for a, b in zip(ours, theirs, strict=False))
    return unequal + abs(len(ours) - len(theirs))


def merged_by_text(turns: Sequence[ChoiceTokens], kind: Family) -> list[TokenSequence]:
    """The mistake that is not made: the text of all turns joined, tokenised once more, and trained
    where the answers' text stood.
    """
    decode = kind.tokenizer.decode
    ids: list[int] = []
    trainable: list[bool] = []
    text = ""
    for turn in turns:
        whole = decode(turn.prompt_ids, skip_special_tokens=False)
        parts = [
            (whole.removeprefix(text), False),
            (decode(turn.completion_ids, skip_special_tokens=False), True),
        ]
        for part, sampled in parts:
            found = kind.tokenizer.encode(part, add_special_tokens=False)
            ids += found
            trainable += [sampled] * len(found)
        text = whole + parts[1][0]
    logprobs = [-1.0 if on else 0.0 for on in trainable]
    return [
        TokenSequence(token_ids=tuple(ids), trainable=tuple(trainable), logprobs=tuple(logprobs))
    ]


def rewritten(outcome: Outcome, kind: Family) -> int:
    """Count the turns whose prompt, as the template writes it, does not begin with the prompt and
    the answer of the turn before.
    """
    items = outcome.trajectory.messages_and_choices
    places = [place for place, item in enumerate(items) if not isinstance(item, dict)]
    count, before = 0, ""
    for place, call in zip(places, outcome.calls, strict=True):
        checked = checked_messages(outcome.trajectory.messages()[:place])
        messages = in_content(checked, kind.tokenizer, Spellings())
        text = kind.tokenizer.apply_chat_template(
            messages, tools=TOOLS, tokenize=False, add_generation_prompt=True
        )
        count += not text.startswith(before)
        before = text + kind.text(list(call.sampled))
    return count
