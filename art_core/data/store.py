"""Trajectories on disk: one JSON-lines file a step and split, a line a group, appended and read
back whole.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import HistoryError
from art_core.base.files import json_line, replacing
from art_core.data.choice import choice_dict, is_choice, message_dict
from art_core.data.prompts import restore_prompts, shorten_prompts
from art_core.data.trajectory import History, RolloutFailure, Trajectory, TrajectoryGroup

log = logging.getLogger("art_core")

_TOKEN_DATA = ("prompt_token_ids", "token_ids", "logprobs")

EARLIER = "earlier"


def trajectory_file(run_dir: Path, split: str, step: int) -> Path:
    """Return where the trajectories of a split and step lie."""
    return run_dir / "trajectories" / split / f"{step:04d}.jsonl"


def append_groups(
    path: Path, groups: Iterable[TrajectoryGroup], *, tokens: bool = True, again: bool = False
) -> int:
    """Append groups, a line each, in one write; return the byte at which they begin. Raises
    HistoryError when the disk does not take them whole.

    `tokens=False` leaves out token ids and log-probs, most of the bytes. `again=True` leaves the
    file as it is when it ends with these very lines. What JSON can't hold is kept as text, so that
    no object in somebody's metadata costs a step its trajectories.
    """
    data = _lines(groups, tokens=tokens)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            good = file.seek(0, os.SEEK_END)
            if again and _ends_with(file.fileno(), good, data):
                return good - len(data)
            torn = bool(good and os.pread(file.fileno(), 1, good - 1) != b"\n")
            data = b"\n" + data if torn else data
            if file.write(data) != len(data):
                file.truncate(good)
                raise OSError("short write")
            return good + torn
    except OSError as error:
        raise HistoryError(
            f"cannot store trajectories in {path}: {error}",
            "Free space or mend the directory, then log again.",
        ) from error


def move_groups(groups: Sequence[TrajectoryGroup], source: Path, target: Path) -> int:
    """Append groups to the file of their step, and cut them from the end of the one where they
    stand; return the byte at which they begin. Raises HistoryError when the disk does not take
    them, and then they stay.
    """
    start = append_groups(target, groups, again=True)
    data = _lines(groups)
    try:
        with source.open("r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if _ends_with(file.fileno(), size, data):
                file.truncate(size - len(data))
    except OSError as error:
        raise HistoryError(
            f"cannot take groups of another step out of {source}: {error}",
            f"{target} has them.",
        ) from error
    return start


def set_earlier_aside(path: Path, start: int) -> None:
    """Move the groups that stand before a byte of a step's file into the file of the same name in
    `earlier/`: the step was trained without them. Raises HistoryError when the disk does not take
    them, and then they stay.
    """
    if not start:
        return
    aside = path.parent / EARLIER / path.name
    try:
        aside.parent.mkdir(exist_ok=True)
        with replacing(path) as rest, path.open("rb") as file, aside.open("ab") as earlier:
            earlier.write(file.read(start))
            shutil.copyfileobj(file, rest)
    except OSError as error:
        raise HistoryError(
            f"cannot move groups of an earlier attempt from {path} to {aside}: {error}",
            f"{path} has them, before those that were trained.",
        ) from error


def _lines(groups: Iterable[TrajectoryGroup], *, tokens: bool = True) -> bytes:
    return b"".join(json_line(_line_dict(g, tokens=tokens)) for g in groups)


def _line_dict(group: TrajectoryGroup, *, tokens: bool) -> dict[str, Any]:
    stored = group_dict(group, tokens=tokens)
    for trajectory in stored["trajectories"]:
        shorten_prompts(_items(trajectory))
    return stored


def _items(stored: Mapping[str, Any]) -> list[list[Any]]:
    """Return the items of each conversation of a stored trajectory, the main one first."""
    histories = (stored, *stored["additional_histories"])
    return [history.get("messages_and_choices", []) for history in histories]


def _ends_with(fd: int, size: int, data: bytes) -> bool:
    return len(data) <= size and os.pread(fd, len(data), size - len(data)) == data


def read_groups(path: Path) -> Iterator[TrajectoryGroup]:
    """Read back the groups of a file; a torn line is passed over with a warning."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                stored = orjson.loads(line)
            except orjson.JSONDecodeError:
                log.warning("%s: line %d is torn: passed over", path, number)
            else:
                yield group_of(stored)


def _item_dict(item: Any, *, tokens: bool) -> dict[str, Any]:
    if not is_choice(item):
        return message_dict(item)
    choice = choice_dict(item)
    return choice if tokens else {k: v for k, v in choice.items() if k not in _TOKEN_DATA}


def _history_dict(history: History, *, tokens: bool) -> dict[str, Any]:
    items = [_item_dict(item, tokens=tokens) for item in history.messages_and_choices]
    return {"messages_and_choices": items, "tools": history.tools}


def group_dict(group: TrajectoryGroup, *, tokens: bool = True) -> dict[str, Any]:
    """Return a group as JSON values: a line of the file has them, with shorter prompts."""
    return {
        "trajectories": [_trajectory_dict(t, tokens=tokens) for t in group.trajectories],
        "failures": [attrs.asdict(f) for f in group.failures],
        "metadata": group.metadata,
        "metrics": group.metrics,
        "logs": group.logs,
    }


def _trajectory_dict(trajectory: Trajectory, *, tokens: bool) -> dict[str, Any]:
    plain = {f.name: getattr(trajectory, f.name) for f in attrs.fields(Trajectory)}
    main, *others = (_history_dict(h, tokens=tokens) for h in trajectory.histories())
    return plain | main | {"additional_histories": others}


def group_of(stored: Mapping[str, Any]) -> TrajectoryGroup:
    """Rebuild a group from what `group_dict` made."""
    return TrajectoryGroup(
        [_trajectory_of(t) for t in stored["trajectories"]],
        exceptions=[RolloutFailure(**f) for f in stored["failures"]],
        metadata=stored["metadata"],
        metrics=stored["metrics"],
        logs=stored["logs"],
    )


def _trajectory_of(stored: dict[str, Any]) -> Trajectory:
    ended = stored["end_time"]
    main, *others = restore_prompts(_items(stored))
    histories = zip(stored["additional_histories"], others, strict=True)
    return Trajectory(
        **stored
        | {
            "messages_and_choices": main,
            "additional_histories": [
                History(**h | {"messages_and_choices": items}) for h, items in histories
            ],
            "start_time": datetime.fromisoformat(stored["start_time"]),
            "end_time": None if ended is None else datetime.fromisoformat(ended),
        }
    )
