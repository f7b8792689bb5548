"""Trajectory files that ART wrote, as groups: JSON lines of earlier releases, Parquet of later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from art_core.base.errors import ConfigError
from art_core.data.trajectory import History, Trajectory, TrajectoryGroup

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
