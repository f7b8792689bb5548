"""Teachers of on-policy distillation: they score the tokens that the trained model sampled."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs

from art_core.backends import Endpoint
from art_core.base.errors import ConfigError
from art_core.client.openai_client import openai_client
from art_core.client.scorer import Scorer
from art_core.data.trajectory import (
    ChoiceTokens,
    History,
    Message,
    TrajectoryGroup,
    is_choice,
    message_of,
    tokens_of,
)
from art_core.model.model import Model
from art_core.prices.book import provider_at

if TYPE_CHECKING:
    from art_core.model.trainable import TrainableModel

PROBE = "Write 3 lines: a poem, a sum such as 12 + 30 = 42, and print('hello') in Python."
PROBE_TOKENS = 48
TOLERATED = 0.1
"""Share of tokens whose texts may differ: servers write some special tokens in other ways."""

Messages = Callable[[list[Message]], list[Message]]
"""Takes the messages before an answer of the student; returns those that the teacher sees."""


@attrs.frozen(kw_only=True, eq=False)
class Teacher:
    """Scores what a student sampled; `await art.teacher(...)` makes one, and checks it.

    `name` is recorded at the choices that it scored. The student pays for its tokens under
    `costs/train/teacher/...` if it is `charged`.
    """

    name: str
    student: TrainableModel = attrs.field(repr=False)
    endpoint: Endpoint
    form: str = "echo"
    charged: bool = True
    messages: Messages | None = None
    max_concurrent: int = 16

    async def score(
        self, groups: Iterable[TrajectoryGroup], *, skip_truncated: bool = False
    ) -> None:
        """Put the log-probs of the sampled tokens on each choice that has token ids and no score of
        this teacher. `skip_truncated` leaves out conversations with a cut-off answer.

        Raises ConfigError if the vocabularies differ, BackendError if the endpoint fails; scores
        that came before stay.
        """
        turns = [
            chain
            for group in groups
            for trajectory in group.trajectories
            for history in trajectory.histories()
            for chain in self._chains(history, skip_truncated=skip_truncated)
        ]
        with self.student.metrics_builder("train").measure("time/step_teacher_s"):
            async with openai_client(self.endpoint, trainable=False) as client:
                await _Scoring(self, self.scorer(client)).all(turns)

    def check_student(self, model: TrainableModel) -> None:
        """Raise ConfigError for another model than the one that the teacher was checked with."""
        if model.run_dir != self.student.run_dir:
            raise ConfigError(
                f"teacher {self.name!r} was made for model {self.student.name!r}, not for "
                f"{model.name!r}",
                "Make one for this model: await art.teacher(model, ...).",
            )

    def scorer(self, client: Any) -> Scorer:
        """Return what asks the endpoint, and books each answer."""
        return Scorer(
            client=client, model=self.endpoint.model_name, form=self.form, seen=self._book
        )

    def _chains(self, history: History, *, skip_truncated: bool) -> Iterator[_Chain]:
        """Yield the turns to score, those together whose tokens are the beginning of one text."""
        turns = list(_turns(history))
        if skip_truncated and any(turn.tokens.truncated for turn in turns):
            return
        chain: list[_Turn] = []
        for turn in turns:
            if chain and (self.messages or not turn.continues(chain[-1])):
                yield _Chain(tuple(chain))
                chain = []
            chain.append(turn)
        if chain:
            yield _Chain(tuple(chain))

    def _book(self, answer: Any) -> None:
        if not self.charged:
            return
        url = self.endpoint.base_url
        leaf = re.sub(r"[^A-Za-z0-9._-]+", "_", self.endpoint.model_name).strip("._-") or "model"
        builder = self.student.metrics_builder("train")
        builder.add_response_cost(
            f"teacher/{leaf}",
            answer,
            provider=provider_at(url) or urlsplit(url).netloc,
            model_name=self.endpoint.model_name,
        )


async def teacher(
    student: TrainableModel,
    of: Model | str | None = None,
    *,
    step: int | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    messages: Messages | None = None,
    max_concurrent: int = 16,
) -> Teacher:
    """Return a teacher for a registered student, checked before anything is sampled or paid for.

    - `of`: another model; or a model's name at the OpenAI-compatible endpoint `base_url`, with
      `api_key`; or None: the student itself at an older `step`, 0 for its base model.
    - `step`: of a trained model, its weights of that step.
    - `messages`: what the teacher sees in place of the messages before an answer: a prompted
      teacher. Without it, the teacher sees the student's own tokens.
    - `max_concurrent`: requests at the same time.

    Raises ConfigError if the endpoint gives no log-probs of a prompt's tokens, if the vocabularies
    differ, or if the teacher is the student; BackendError if an endpoint does not answer.
    """
    endpoint = _endpoint_of(student, of, step, base_url, api_key)
    made = Teacher(
        name=endpoint.model_name,
        student=student,
        endpoint=endpoint,
        charged=not getattr(of or student, "_trainable", False),
        messages=messages,
        max_concurrent=max_concurrent,
    )
    question = [{"role": "user", "content": PROBE}]
    answer = await student.openai_client().chat.completions.create(
        model=student.get_inference_name(),
        messages=question,  # type: ignore[arg-type]
        max_tokens=PROBE_TOKENS,
    )
    turn = next(_turns(History(messages_and_choices=[answer.choices[0]])), None)
    if turn is None:
        raise ConfigError(
            f"model {student.name!r} answers without token ids and log-probs",
            "Train it with a backend whose endpoint gives them.",
        )
    async with openai_client(endpoint, trainable=False) as client:
        scorer, found = await made.scorer(client).tried(turn.ids)
        scoring = _Scoring(made, scorer)
        scoring.compare(turn, found.texts[turn.start :])
        scoring.check()
        if messages is not None:
            await scoring.prompt_ids(messages(list(question)), None)
    return attrs.evolve(made, form=scorer.form)


def _endpoint_of(
    student: TrainableModel,
    of: Model | str | None,
    step: int | None,
    base_url: str | None,
    api_key: str | None,
) -> Endpoint:
    if isinstance(of, str):
        if base_url is None:
            raise ConfigError(
                f"teacher {of!r} has no endpoint", "Give base_url=..., which ends in /v1."
            )
        if step is not None:
            raise ConfigError(f"teacher {of!r} is a name at {base_url}, which has no steps")
        return Endpoint(base_url=base_url, api_key=api_key or "none", model_name=of)
    if base_url is not None or api_key is not None:
        raise ConfigError("base_url and api_key are those of a teacher that is given by its name")
    if step is None and of in (None, student):
        raise ConfigError(
            f"model {student.name!r} can't teach itself what it does already",
            "Give an older step=..., or another model.",
        )
    endpoint = (of or student).endpoint()
    return attrs.evolve(endpoint, model_name=endpoint.inference_name(step))


@attrs.frozen(eq=False)
class _Turn:
    """A choice, its tokens, and the conversation before it."""

    choice: Any
    tokens: ChoiceTokens
    before: tuple[Message, ...]
    tools: Any = None

    @property
    def ids(self) -> tuple[int, ...]:
        return self.tokens.prompt_ids + self.tokens.completion_ids

    @property
    def start(self) -> int:
        return len(self.tokens.prompt_ids)

    def continues(self, earlier: _Turn) -> bool:
        return self.tokens.prompt_ids[: len(earlier.ids)] == earlier.ids


@attrs.frozen(eq=False)
class _Chain:
    """Turns of one conversation whose last has the tokens of all others."""

    turns: tuple[_Turn, ...]


def _turns(history: History) -> Iterator[_Turn]:
    items = history.messages_and_choices
    for place, item in enumerate(items):
        tokens = tokens_of(item) if is_choice(item) else None
        if tokens is not None:
            before = tuple(message_of(each) for each in items[:place])
            yield _Turn(item, tokens, before, history.tools)


class _Scoring:
    """The requests of one call; equal texts are sent once."""

    def __init__(self, teacher: Teacher, scorer: Scorer) -> None:
        self._teacher, self._scorer = teacher, scorer
        self._limit = asyncio.Semaphore(teacher.max_concurrent)
        self._running: dict[Any, asyncio.Task[Any]] = {}
        self._compared = self._different = 0
        self._example = ""

    async def all(self, chains: Sequence[_Chain]) -> None:
        """Score all turns that the teacher has not scored yet; ConfigError if texts differ."""
        name = self._teacher.name
        open_chains = [c for c in chains if not all(is_scored_by(t.choice, name) for t in c.turns)]
        try:
            async with asyncio.TaskGroup() as group:
                for chain in open_chains:
                    group.create_task(self._chain(chain))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        self.check()

    async def _chain(self, chain: _Chain) -> None:
        last, moved = chain.turns[-1], 0
        ids = last.ids
        if self._teacher.messages is not None:
            seen = self._teacher.messages(list(last.before))
            prompt = await self.prompt_ids(seen, last.tools)
            ids, moved = (*prompt, *last.tokens.completion_ids), len(prompt) - last.start
        found = await self._once(ids, lambda: self._scorer.score(ids))
        for turn in chain.turns:
            place = slice(turn.start + moved, turn.start + moved + len(turn.tokens.completion_ids))
            self.compare(turn, found.texts[place])
            set_scores(turn.choice, self._teacher.name, found.logprobs[place])

    async def prompt_ids(self, messages: list[Message], tools: Any) -> tuple[int, ...]:
        """Return the tokens of messages as the teacher's chat template renders them."""
        key = json.dumps([messages, tools], sort_keys=True, default=str)

        async def ask() -> tuple[int, ...]:
            answer = await self._scorer.client.chat.completions.create(
                model=self._scorer.model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=1,
                extra_body={"return_token_ids": True},
                **({"tools": tools} if tools else {}),
            )
            self._scorer.seen(answer.model_dump())
            ids = getattr(answer, "prompt_token_ids", None)
            if not ids:
                raise ConfigError(
                    f"teacher {self._teacher.name!r} returns no token ids of a prompt, which a "
                    "teacher with messages of its own needs",
                    "Serve it with vLLM or a backend of art-core, or leave messages out.",
                )
            return tuple(ids)

        return tuple(await self._once(key, ask))

    async def _once(self, key: Any, work: Callable[[], Any]) -> Any:
        async def limited() -> Any:
            async with self._limit:
                return await work()

        if key not in self._running:
            self._running[key] = asyncio.ensure_future(limited())
        return await asyncio.shield(self._running[key])

    def compare(self, turn: _Turn, texts: Sequence[str]) -> None:
        """Count the sampled tokens whose texts differ between student and teacher."""
        pairs = zip(turn.tokens.completion_ids, token_texts(turn.choice), texts, strict=True)
        for token, mine, theirs in pairs:
            one, other = mine.strip(), theirs.strip()
            if not one or not other or "\ufffd" in one + other:
                continue
            self._compared += 1
            if one != other:
                self._different += 1
                self._example = self._example or f"token {token} is {mine!r} and {theirs!r}"

    def check(self) -> None:
        """Raise ConfigError if the two vocabularies differ."""
        if self._different > TOLERATED * self._compared:
            raise ConfigError(
                f"student and teacher {self._teacher.name!r} have different vocabularies: "
                f"{self._different} of {self._compared} tokens differ, {self._example} in the "
                "teacher",
                "Distil from a model of the same family, whose tokenizer is the same.",
            )


TEACHER, SCORES = "teacher", "teacher_logprobs"
_MIN_LOGPROB = -9999.0
"""That of a token with probability 0, in OpenAI's form: JSON has no infinity."""


def set_scores(choice: Any, teacher: str, logprobs: Sequence[float]) -> None:
    """Keep a teacher's log-probs of the sampled tokens on a choice, with its name; they are stored
    with it.
    """
    values = {TEACHER: teacher, SCORES: [max(each, _MIN_LOGPROB) for each in logprobs]}
    for name, value in values.items():
        if isinstance(choice, dict):
            choice[name] = value
        else:
            setattr(choice, name, value)


def is_scored_by(choice: Any, teacher: str) -> bool:
    """Return whether a choice has the log-probs of that teacher."""
    return _field(choice, TEACHER) == teacher and _field(choice, SCORES) is not None


def token_texts(choice: Any) -> list[str]:
    """Return the text of each sampled token of a choice, as its endpoint wrote it."""
    content = _field(_field(choice, "logprobs") or {}, "content") or ()
    return [str(_field(entry, "token") or "") for entry in content]


def _field(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else getattr(item, name, None)
