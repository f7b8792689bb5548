"""Trajectories on disk: one JSON-lines file per step and split, with one line per group.

The prompt of a turn begins with the prompt and the answer of the turn before. Stored whole, the
prompts of a conversation would take disk as the square of its length. A line of the files has
`{"turn": [history, item], "same": n, "then": [...]}` in place of such a prompt: the first n ids of
that turn's prompt and answer, then other ids. Files that ART wrote are read too: JSON lines of
earlier releases, Parquet of later ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import orjson

from art_core.base.errors import ConfigError, HistoryError, RolloutFailure
from art_core.base.files import checked_name, json_line, replacing
from art_core.base.images import reader_of_images, with_images_in_files
from art_core.data.trajectory import (
    History,
    Trajectory,
    TrajectoryGroup,
    choice_dict,
    is_choice,
    message_dict,
)

log = logging.getLogger("art_core")

_TOKEN_DATA = ("prompt_token_ids", "prompt_images", "token_ids", "logprobs", "teacher_logprobs")

EARLIER = "earlier"
IMAGES = "images"


def trajectory_file(run_dir: Path, split: str, step: int) -> Path:
    """Return the path of the trajectories of a split and step."""
    return trajectory_folder(run_dir, split) / f"{step:04d}.jsonl"


def trajectory_folder(run_dir: Path, split: str = "") -> Path:
    """Return the directory of a run's trajectories, or of those of a split; ConfigError for a
    split that cannot name a directory.
    """
    folder = run_dir / "trajectories"
    return folder / checked_name("split", split) if split else folder


def append_groups(
    path: Path, groups: Iterable[TrajectoryGroup], *, tokens: bool = True, again: bool = False
) -> int:
    """Append groups, one line each, in one write; return the byte at which they begin. Raises
    HistoryError if the disk does not take them whole.

    `tokens=False` leaves out token ids and log-probs, most of the bytes. `again=True` leaves the
    file as it is if it ends with these lines. Values that JSON cannot hold are stored as text.
    Images of messages are in files beside it, each once.
    """
    try:
        data = _lines(groups, _images_of(path), tokens=tokens)
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
    """Append groups to the file of their step and cut them from the end of the file that has them;
    return the byte at which they begin. Raises HistoryError, with the groups where they were, if
    the disk does not take them.
    """
    start = append_groups(target, groups, again=True)
    try:
        data = _lines(groups, _images_of(source))
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
    """Move the groups before a byte of a step's file into the file of the same name in `earlier/`:
    the step was trained without them. Raises HistoryError, with the groups where they were, if the
    disk does not take them.
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


def tidy_step(
    run_dir: Path, groups: Sequence[TrajectoryGroup], stored: tuple[int, int], step: int
) -> None:
    """Leave only the trained groups in the file of a trained step. `stored` is the step under which
    they were stored, and the byte of its file at which they begin.
    """
    expected, start = stored
    file = trajectory_file(run_dir, "train", step)
    if step != expected:
        start = move_groups(groups, trajectory_file(run_dir, "train", expected), file)
    set_earlier_aside(file, start)


def _images_of(path: Path) -> Path:
    """Return the folder of the images of a file's groups: that of its split."""
    return (path.parent.parent if path.parent.name == EARLIER else path.parent) / IMAGES


def _lines(groups: Iterable[TrajectoryGroup], images: Path, *, tokens: bool = True) -> bytes:
    return b"".join(json_line(_line_dict(g, images, tokens=tokens)) for g in groups)


def _line_dict(group: TrajectoryGroup, images: Path, *, tokens: bool) -> dict[str, Any]:
    stored = group_dict(group, tokens=tokens)
    for trajectory in stored["trajectories"]:
        histories = _items(trajectory)
        shorten_prompts(histories)
        for items in histories:
            items[:] = [with_images_in_files(item, images) for item in items]
    return stored


def _items(stored: Mapping[str, Any]) -> list[list[Any]]:
    """Return the items of each conversation of a stored trajectory, the main one first."""
    histories = (stored, *stored["additional_histories"])
    return [history.get("messages_and_choices", []) for history in histories]


def _ends_with(fd: int, size: int, data: bytes) -> bool:
    return len(data) <= size and os.pread(fd, len(data), size - len(data)) == data


def read_groups(path: Path, start: int = 0) -> Iterator[TrajectoryGroup]:
    """Read back the groups of a file from a byte on, also of one that ART wrote; a torn line is
    skipped with a warning.
    """
    put_back = reader_of_images(_images_of(path))
    with path.open("rb") as file:
        written_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        file.seek(start)
        for number, line in enumerate(file, start=1):
            try:
                stored = orjson.loads(line)
            except orjson.JSONDecodeError:
                log.warning("%s: line %d is torn: passed over", path, number)
            else:
                if "failures" not in stored:
                    yield art_group(stored, written_at)
                    continue
                for items in (i for t in stored["trajectories"] for i in _items(t)):
                    items[:] = map(put_back, items)
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
    """Return a group as JSON values; a line of the file has them with shorter prompts."""
    return {
        "trajectories": [_trajectory_dict(t, tokens=tokens) for t in group.trajectories],
        "failures": [attrs.asdict(f) for f in group.failures],
        "metadata": group.metadata,
        "metrics": group.metrics,
        "logs": group.logs,
        **({} if group.baseline is None else {"baseline": group.baseline}),
    }


def _trajectory_dict(trajectory: Trajectory, *, tokens: bool) -> dict[str, Any]:
    plain = {f.name: getattr(trajectory, f.name) for f in attrs.fields(Trajectory)}
    main, *others = (_history_dict(h, tokens=tokens) for h in trajectory.histories())
    if not trajectory.turn_rewards:
        del plain["turn_rewards"]  # readers of other versions do not know it
    return plain | main | {"additional_histories": others}


def group_of(stored: Mapping[str, Any]) -> TrajectoryGroup:
    """Rebuild a group from what `group_dict` made."""
    return TrajectoryGroup(
        [_trajectory_of(t) for t in stored["trajectories"]],
        exceptions=[RolloutFailure(**f) for f in stored["failures"]],
        metadata=stored["metadata"],
        metrics=stored["metrics"],
        logs=stored["logs"],
        baseline=stored.get("baseline"),
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


PROMPT, ANSWER = "prompt_token_ids", "token_ids"
MIN_SAME = 16
"""A prompt with fewer ids in common with each earlier turn is stored whole."""

Ids = list[int]
Turn = tuple[int, int]


def shorten_prompts(histories: Sequence[list[Any]]) -> None:
    """Shorten the prompts in the items of a trajectory's conversations, in place."""
    newest: dict[int, tuple[Turn, Ids]] = {}
    for place, items in enumerate(histories):
        for number, item in enumerate(items):
            if not _has_prompt(item):
                continue
            prompt = list(item[PROMPT])
            turn, same = _most_alike(prompt, newest, place)
            if same >= MIN_SAME:
                item[PROMPT] = {"turn": turn, "same": same, "then": prompt[same:]}
            newest[place] = (place, number), prompt + list(item.get(ANSWER) or ())


def restore_prompts(histories: Sequence[list[Any]]) -> list[list[Any]]:
    """Return the items with whole prompts; KeyError for a turn that is missing."""
    known: dict[Turn, Ids] = {}
    restored: list[list[Any]] = []
    for place, items in enumerate(histories):
        restored.append([])
        for number, stored in enumerate(items):
            item = stored
            if _is_choice(item) and isinstance(item.get(PROMPT), Mapping):
                item = {**item, PROMPT: _whole(item[PROMPT], known)}
            if _has_prompt(item):
                known[place, number] = [*item[PROMPT], *(item.get(ANSWER) or ())]
            restored[-1].append(item)
    return restored


def _whole(stored: Mapping[str, Any], known: Mapping[Turn, Ids]) -> Ids:
    place, number = stored["turn"]
    return [*known[place, number][: stored["same"]], *stored["then"]]


def _is_choice(item: Any) -> bool:
    return isinstance(item, Mapping) and is_choice(item)


def _has_prompt(item: Any) -> bool:
    return _is_choice(item) and isinstance(item.get(PROMPT), list | tuple)


def _most_alike(
    prompt: Ids, newest: Mapping[int, tuple[Turn, Ids]], place: int
) -> tuple[Turn, int]:
    """Return the turn whose ids have the longest common beginning with a prompt, and its length.
    The turn before, in the same conversation, is compared first.
    """
    best: tuple[Turn, int] = (0, 0), 0
    for history in sorted(newest, key=lambda other: other != place):
        turn, ids = newest[history]
        same = _same(prompt, ids)
        if same > best[1]:
            best = turn, same
        if same == len(ids):
            break
    return best


def _same(one: Ids, other: Ids) -> int:
    """Return how many ids at the beginning are equal, by comparing slices, which is fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


_FIELDS = ("messages_and_choices", "reward", "tools", "metrics", "metadata", "logs")


def art_group(stored: Mapping[str, Any], written_at: datetime) -> TrajectoryGroup:
    """Return the group of a line; ART kept no times, so that all began when it was written."""
    return TrajectoryGroup(
        [_trajectory(given, written_at) for given in stored["trajectories"]],
        **{name: stored[name] for name in ("metadata", "metrics", "logs") if stored.get(name)},
    )


def _trajectory(stored: Mapping[str, Any], written_at: datetime) -> Trajectory:
    histories = [
        History(messages_and_choices=h["messages_and_choices"], tools=h.get("tools"))
        for h in stored.get("additional_histories") or ()
    ]
    given = {name: stored[name] for name in _FIELDS if stored.get(name) is not None}
    return Trajectory(**given, additional_histories=histories, start_time=written_at)


def read_art_groups(path: Path) -> list[TrajectoryGroup]:
    """Read a Parquet file of ART; ConfigError if pyarrow is not installed."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{path} needs pyarrow, which is not installed", "pip install 'art-core[parquet]'"
        ) from error
    written_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    groups: dict[int, dict[str, Any]] = {}
    for row in pq.read_table(path).to_pylist():
        group = groups.setdefault(row["group_index"], {"trajectories": [], **_group(row)})
        group["trajectories"].append(_stored(row))
    return [art_group(groups[index], written_at) for index in sorted(groups)]


def _group(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: _json(row.get(f"group_{name}")) for name in ("metadata", "metrics")}
    return fields | {"logs": row.get("group_logs")}


def _stored(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: _json(row.get(name)) for name in ("metrics", "metadata", "tools")}
    return fields | {
        "messages_and_choices": _messages(row["messages"] or ()),
        "reward": row["reward"],
        "logs": row.get("logs"),
    }


def _messages(stored: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages; those of the model are not choices, since ART kept no tokens of them."""
    return [
        {"role": message["role"], "content": message["content"]}
        | {
            name: value
            for name, value in (
                ("tool_calls", _json(message["tool_calls"])),
                ("tool_call_id", message["tool_call_id"]),
            )
            if value
        }
        for message in stored
    ]


def _json(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
