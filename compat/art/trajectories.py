"""ART's trajectories: those of art-core, with the methods and the forms that scripts use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, ClassVar, Self

import attrs

import art_core
from art._dumps import PydanticMethods, take_fields

__all__ = ["History", "PydanticException", "Trajectory", "TrajectoryGroup", "get_messages"]

PydanticException = art_core.RolloutFailure
UNDUMPED = frozenset({"start_time", "end_time", "turn_rewards"})


def get_messages(messages_and_choices: Iterable[Any]) -> list[Any]:
    """Return a conversation as chat messages; those without content have an empty one."""
    messages = art_core.History(messages_and_choices=list(messages_and_choices)).messages()
    return [{**message, "content": message.get("content") or ""} for message in messages]


@attrs.define(kw_only=True)
class History(PydanticMethods, art_core.History):
    """A conversation besides the main one."""

    def messages(self) -> list[Any]:
        """Return the conversation as chat messages."""
        return get_messages(self.messages_and_choices)


class Duration:
    """A block whose seconds a trajectory counts, for `with` and for `async with`."""

    def __init__(self, trajectory: art_core.Trajectory, name: str) -> None:
        self._trajectory, self._name = trajectory, name
        self._open = ExitStack()

    def __enter__(self) -> None:
        self._open.enter_context(art_core.Trajectory.track_duration(self._trajectory, self._name))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)


@attrs.define(kw_only=True)
class Trajectory(PydanticMethods, art_core.Trajectory):
    """One attempt. A subclass may declare further fields, as in ART."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__attrs_attrs__" not in vars(cls):
            take_fields(cls)

    def _dumped_names(self) -> list[str]:
        return [name for name in super()._dumped_names() if name not in UNDUMPED]

    def messages(self) -> list[Any]:
        """Return the conversation as chat messages."""
        return get_messages(self.messages_and_choices)

    def track_duration(self, metric_name: str) -> Any:
        """Add the seconds of a block, also an async one, to a metric."""
        return Duration(self, metric_name)

    def for_logging(self) -> dict[str, Any]:
        """Return what a log shows: choices are messages with `trainable`."""
        shown = self.model_dump(exclude=("messages_and_choices", "additional_histories"))
        items = zip(self.messages(), self.messages_and_choices, strict=True)
        shown["messages"] = [
            {**message, "trainable": hasattr(item, "finish_reason")} for message, item in items
        ]
        return shown

    def __str__(self) -> str:
        return f"Trajectory(reward={self.reward}, metrics={self.metrics}, metadata={self.metadata})"


class TrajectoryGroup(PydanticMethods, art_core.TrajectoryGroup):
    """Attempts at one scenario. Its attributes can be set, and `trajectories` is a list."""

    __setattr__ = object.__setattr__
    __dumped__: ClassVar = ["trajectories", "exceptions", "metadata", "metrics", "logs"]

    def __init__(
        self,
        trajectories: Iterable[Any] = (),
        *,
        exceptions: Iterable[Any] = (),
        metadata: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        logs: Iterable[str] | None = None,
        baseline: float | None = None,
    ) -> None:
        super().__init__(
            trajectories,
            exceptions=exceptions,
            metadata=metadata,
            metrics=metrics,
            logs=logs or (),
            baseline=baseline,
        )
        self.set_values(trajectories=list(self.trajectories))

    @classmethod
    def of(cls, group: art_core.TrajectoryGroup) -> TrajectoryGroup:
        """Return a group of art-core as one of these; it keeps its place and its paid calls."""
        if isinstance(group, cls):
            return group
        made = cls(
            group.trajectories,
            exceptions=group.failures,
            metadata=group.metadata,
            metrics=group.metrics,
            logs=group.logs,
            baseline=group.baseline,
        )
        made.set_values(id=group.id)
        if group.account is not None:
            made.paid_by(group.account)
        return made

    def set_values(self, **values: Any) -> None:
        """Set attributes that art-core's groups keep."""
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def exceptions(self) -> list[art_core.RolloutFailure]:
        """The failures; each has `type`, `message` and `traceback`."""
        return list(self.failures)

    def log(self, message: str) -> None:
        """Keep a line of text with the group."""
        self.logs.append(message)

    def _dumped_names(self) -> list[str]:
        return self.__dumped__

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.model_copy(deep=True)

    def __await__(self) -> Any:
        async def awaited() -> TrajectoryGroup:
            return TrajectoryGroup.of(await _core_group(self))

        return awaited().__await__()


async def _core_group(group: art_core.TrajectoryGroup) -> art_core.TrajectoryGroup:
    class Awaited:
        def __await__(self) -> Any:
            return art_core.TrajectoryGroup.__await__(group)

    gathered: art_core.TrajectoryGroup = await Awaited()
    return gathered
