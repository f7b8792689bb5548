"""Attempts at a task, groups of attempts at the same task, and the model's answers in them.

A `Trajectory` is mutable while the rollout writes it; a `TrajectoryGroup` is frozen. A rollout that
fails is a `RolloutFailure` in its group. A *choice* is what an OpenAI-compatible endpoint returns
in `completion.choices[0]`: the client's object, or the dict that it was stored as. Everything else
in a conversation is a message dict.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Awaitable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from art_core.base.errors import ConfigError, RolloutFailure, failure_of
from art_core.base.numbers import nan_if_none, number_or_none

if TYPE_CHECKING:
    from art_core.data.account import Account

_group_ids = itertools.count()

Message = dict[str, Any]
MessageOrChoice = Any
"""A chat message (`{"role": ..., "content": ...}`), an openai `Choice`, or a choice's dict form."""


@attrs.frozen(kw_only=True)
class ChoiceTokens:
    """The engine's own tokens of one choice; no text was tokenised again.

    `prompt_ids` [P] is the whole prompt that the engine saw, `completion_ids` [C] what it sampled
    (its end token included), `logprobs` [C] natural log-probabilities among the tokens that
    `grammar` allows; `biased`: other ones were drawn from. `policy_version` is the training step of
    the weights, if it was reported, `teacher_logprobs` [C] are a teacher's, and `images` the
    digests of the prompt's images, or their data URLs (`turns_of`).
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int | None = None
    truncated: bool = False
    biased: bool = False
    grammar: str | None = None
    teacher_logprobs: tuple[float, ...] | None = None
    images: tuple[str, ...] = ()


def is_choice(item: MessageOrChoice) -> bool:
    """Return whether an item of a conversation is a choice; others are messages."""
    if isinstance(item, Mapping):
        return "message" in item and "finish_reason" in item
    return hasattr(item, "message") and hasattr(item, "finish_reason")


def is_cut_off(item: MessageOrChoice) -> bool:
    """Return whether an item of a conversation is an answer that `max_tokens` cut off."""
    return is_choice(item) and bool(_get(item, "finish_reason") == "length")


def choice_dict(item: MessageOrChoice) -> dict[str, Any]:
    """Return a choice as plain JSON values, the form in which it is stored."""
    if isinstance(item, Mapping):
        return dict(item)
    return {"finish_reason": None} | _dumped(item)


def message_dict(item: Any) -> Message:
    """Return a message as a dict, also an openai `ChatCompletionMessage`; ConfigError for anything
    else.
    """
    if isinstance(item, Mapping):
        return dict(item)
    if hasattr(item, "model_dump"):
        return _dumped(item)
    raise ConfigError(
        f"a conversation holds messages and choices, not {type(item).__name__}",
        'Append {"role": ..., "content": ...} or completion.choices[0].',
    )


def _dumped(item: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = item.model_dump(mode="json", exclude_none=True, warnings=False)
    return dumped


def message_of(item: MessageOrChoice) -> Message:
    """Return the chat message of a choice, or the message itself, to send it back to a model."""
    if not is_choice(item):
        return message_dict(item)
    message = message_dict(_get(item, "message"))
    present = {k: v for k, v in message.items() if v is not None and v != []}
    return {"role": "assistant", "content": None, **present}


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _completion_ids(item: MessageOrChoice, content: Sequence[Any]) -> list[int] | None:
    """Return a choice's token ids; one that openai made of a stream has them in its log-probs."""
    ids: list[int] | None = _get(item, "token_ids")
    beside = [_get(entry, "token_id") for entry in content]
    return beside if beside and None not in beside else ids


def tokens_of(item: MessageOrChoice) -> ChoiceTokens | None:
    """Return the engine's tokens of a choice; None if the endpoint did not send all of them."""
    prompt_ids = _get(item, "prompt_token_ids")
    content = _get(_get(item, "logprobs") or {}, "content")
    if not prompt_ids or content is None:
        return None
    completion_ids = _completion_ids(item, content)
    logprobs = [_get(entry, "logprob") for entry in content]
    if completion_ids is None or len(logprobs) != len(completion_ids) or None in logprobs:
        return None
    scores: Sequence[float] = _get(item, "teacher_logprobs") or ()
    return ChoiceTokens(
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(completion_ids),
        logprobs=tuple(map(float, logprobs)),
        policy_version=_get(item, "policy_version"),
        truncated=_get(item, "finish_reason") == "length",
        biased=bool(_get(item, "sampling")),
        grammar=_get(item, "grammar"),
        teacher_logprobs=tuple(scores) if len(scores) == len(completion_ids) else None,
        images=tuple(_get(item, "prompt_images") or ()),
    )


class Charged:
    """Base of trajectories and groups: has the account of the paid calls that made them. The
    account is no field, so copies and stored values do not have it.
    """

    __slots__ = ("_account",)

    @property
    def account(self) -> Account | None:
        """Return the account; None outside of gatherings."""
        return getattr(self, "_account", None)

    def charge_to(self, account: Account) -> Account:
        """Set the account unless there is one already; return the account that is set."""
        charged = self.account or account
        object.__setattr__(self, "_account", charged)
        return charged


def _now() -> datetime:
    return datetime.now(UTC)


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.astimezone()


@attrs.define(kw_only=True)
class History:
    """A conversation besides the main one: of a sub-agent, or before a context was compacted."""

    messages_and_choices: list[MessageOrChoice] = attrs.field(factory=list)
    tools: list[dict[str, Any]] | None = None

    def messages(self) -> list[Any]:
        """Return the conversation as chat messages, dicts; choices are assistant messages."""
        return [message_of(item) for item in self.messages_and_choices]


@attrs.define(kw_only=True)
class Trajectory(Charged):
    """One attempt: the conversation, its reward, and what the rollout measured about it.

    `reward` is a finite float, earned at the end; None is kept as NaN: the outcome is unknown, and
    the attempt can't be compared. `turn_rewards` are empty, or one finite float for each choice of
    the main conversation, earned there besides. `metrics` are numbers or bools, averaged over the
    step; `initial_policy_version` and `final_policy_version` are the training steps whose weights
    made the first and the last choice (filled from the choices when left out). `start_time` and
    `end_time` without a time zone are the machine's.
    """

    messages_and_choices: list[MessageOrChoice] = attrs.field(factory=list)
    reward: float = attrs.field(default=0.0, converter=nan_if_none)
    turn_rewards: list[float] = attrs.field(factory=list)
    tools: list[dict[str, Any]] | None = None
    additional_histories: list[History] = attrs.field(factory=list)
    metrics: dict[str, float | int | bool] = attrs.field(factory=dict)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    logs: list[str] = attrs.field(factory=list)
    initial_policy_version: int | None = None
    final_policy_version: int | None = None
    start_time: datetime = attrs.field(factory=_now, converter=_aware)
    end_time: datetime | None = attrs.field(
        default=None, converter=attrs.converters.optional(_aware)
    )

    @property
    def total_reward(self) -> float:
        """The reward, and those of the turns."""
        return self.reward + math.fsum(self.turn_rewards) if self.turn_rewards else self.reward

    def num_turns(self) -> int:
        """Return the number of choices in the main conversation."""
        return sum(map(is_choice, self.messages_and_choices))

    def check_turn_rewards(self) -> None:
        """Make floats of the turn rewards. ConfigError unless they are finite numbers, one for each
        choice of the main conversation, or none.
        """
        given, turns = self.turn_rewards, self.num_turns()
        listed = given if isinstance(given, list | tuple) else [None]
        rewards = [number_or_none(+r if isinstance(r, bool) else r) for r in listed]
        found = [reward for reward in rewards if reward is not None]
        if len(found) < len(rewards):
            raise ConfigError(f"turn_rewards must be a list of finite numbers, got {given!r:.80}")
        if found and len(found) != turns:
            raise ConfigError(
                f"turn_rewards has {len(found)} rewards, and the conversation {turns} choices",
                "Give one reward for each choice of messages_and_choices, 0.0 for none.",
            )
        self.turn_rewards = found

    def messages(self) -> list[Any]:
        """Return the conversation as chat messages, dicts that OpenAI's client takes."""
        return [message_of(item) for item in self.messages_and_choices]

    def log(self, message: str) -> None:
        """Keep a line of text with the attempt."""
        self.logs.append(message)

    def histories(self) -> list[History]:
        """Return every conversation of the attempt, the main one first."""
        main = History(messages_and_choices=self.messages_and_choices, tools=self.tools)
        return [main, *self.additional_histories]

    @contextmanager
    def track_duration(self, name: str) -> Iterator[None]:
        """Add the seconds spent in the block to `metrics["<name>_duration"]`."""
        start = time.monotonic()
        try:
            yield
        finally:
            key = f"{name}_duration"
            self.metrics[key] = self.metrics.get(key, 0.0) + time.monotonic() - start

    def finish(self) -> Trajectory:
        """Set the end of the attempt, once, and the metric `duration` in seconds unless there is
        one; return the trajectory.
        """
        if self.end_time is None:
            self.end_time = _now()
            # The machine's clock may have been set back meanwhile.
            seconds = max(0.0, (self.end_time - self.start_time).total_seconds())
            self.metrics.setdefault("duration", seconds)
        return self


RolloutResult = Trajectory | Sequence[Trajectory] | Mapping[str, Trajectory]
"""What a rollout returns: a trajectory, or one for each of its players."""


@attrs.frozen(init=False, eq=False)
class TrajectoryGroup(Charged):
    """Attempts at one scenario, compared with each other by the trainer.

    Takes trajectories, rollouts still to be awaited (a generator of coroutines), and exceptions of
    rollouts that failed, mixed in any order. Await the group, or give it to
    `gather_trajectory_groups`, to run the rollouts. `metrics` are logged once per group, and
    `metadata` (for example a scenario's id) stays with the failures too.
    """

    trajectories: tuple[Trajectory, ...]
    failures: tuple[RolloutFailure, ...]
    metadata: dict[str, Any]
    metrics: dict[str, float | int | bool]
    logs: list[str]
    baseline: float | None
    pending: tuple[Awaitable[RolloutResult], ...] = attrs.field(repr=False)
    id: int

    def __init__(
        self,
        trajectories: Iterable[
            Trajectory | Awaitable[RolloutResult] | BaseException | RolloutFailure
        ] = (),
        *,
        exceptions: Iterable[BaseException | RolloutFailure] = (),
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | int | bool] | None = None,
        logs: Iterable[str] = (),
        baseline: float | None = None,
    ) -> None:
        done: list[Trajectory] = []
        pending: list[Awaitable[RolloutResult]] = []
        failed: list[RolloutFailure] = []
        for item in trajectories:
            if isinstance(item, Trajectory):
                done.append(item)
            elif isinstance(item, (BaseException, RolloutFailure)):
                failed.append(failure_of(item))
            elif isinstance(item, Awaitable):
                pending.append(item)
            else:
                raise ConfigError(
                    f"a trajectory group holds trajectories or rollouts, not {type(item).__name__}",
                    "Give Trajectory objects, coroutines that return one, or exceptions.",
                )
        self.__attrs_init__(
            trajectories=tuple(done),
            failures=(*failed, *map(failure_of, exceptions)),
            metadata=dict(metadata or {}),
            metrics=dict(metrics or {}),
            logs=list(logs),
            baseline=baseline,
            pending=tuple(pending),
            id=next(_group_ids),
        )

    @property
    def rewards(self) -> list[float]:
        """Rewards of the trajectories, those of their turns included, in order."""
        return [t.total_reward for t in self.trajectories]

    def with_results(
        self, trajectories: Iterable[Trajectory], failures: Iterable[RolloutFailure] = ()
    ) -> TrajectoryGroup:
        """Return this group with its pending rollouts replaced by what they gave."""
        return self._with([*self.trajectories, *trajectories], [*self.failures, *failures])

    def with_trajectories(self, trajectories: Iterable[Trajectory]) -> TrajectoryGroup:
        """Return this group with other trajectories, judged ones for example. Failures, metadata,
        metrics, logs and the account of paid calls stay.
        """
        return self._with(list(trajectories), list(self.failures))

    def _with(
        self, trajectories: list[Trajectory], failures: list[RolloutFailure]
    ) -> TrajectoryGroup:
        group = TrajectoryGroup(
            trajectories,
            exceptions=failures,
            metadata=self.metadata,
            metrics=self.metrics,
            logs=self.logs,
            baseline=self.baseline,
        )
        return group if self.account is None else group.paid_by(self.account)

    def paid_by(self, account: Account) -> TrajectoryGroup:
        """Set the account of the group and of its trajectories that have none; return the group."""
        self.charge_to(account).absorb(account)
        for trajectory in self.trajectories:
            trajectory.charge_to(account)
        return self

    def accounts(self) -> list[Account]:
        """Return the accounts of the group and its trajectories."""
        accounts = [self.account, *(t.account for t in self.trajectories)]
        return list(dict.fromkeys(account for account in accounts if account is not None))

    def to_dict(self, *, tokens: bool = True) -> dict[str, Any]:
        """Return the group as plain values.

        `tokens=False` leaves out token ids and log-probs, most of the bytes.
        """
        from art_core.data.store import group_dict

        return group_dict(self, tokens=tokens)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> TrajectoryGroup:
        """Rebuild a group from `to_dict`'s values, or from a line of the trajectory files.
        ConfigError names the value that does not fit.
        """
        from art_core.data.store import group_of

        try:
            return group_of(stored)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(f"not a trajectory group: {what}") from error

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.trajectories)

    def __len__(self) -> int:
        return len(self.trajectories)

    def __await__(self) -> Generator[Any, None, TrajectoryGroup]:
        from art_core.data.gather import run_group

        return run_group(self).__await__()
