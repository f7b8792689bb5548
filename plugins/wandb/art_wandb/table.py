"""A step's trajectories as the rows of a table, read from the file that the run keeps of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("step", "group", "trajectory", "reward", "metrics", "messages")
_MOST_ROWS = 1_000


def table_rows(run_dir: Path, split: str, step: int) -> list[list[Any]]:
    """Return the table's rows of a split and step, 1,000 at most; none where none were stored."""
    path = run_dir / "trajectories" / split / f"{step:04d}.jsonl"
    if not path.exists():
        return []
    return [row for row, _ in zip(_rows(path, step), range(_MOST_ROWS), strict=False)]


def _rows(path: Path, step: int) -> Iterator[list[Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            for index, one in enumerate(json.loads(line)["trajectories"]):
                metrics = json.dumps(one["metrics"], ensure_ascii=False)
                messages = [_message(item) for item in one["messages_and_choices"]]
                text = json.dumps(messages, ensure_ascii=False)
                yield [step, number, index, float(one["reward"]), metrics, text]


def _message(item: dict[str, Any]) -> Any:
    """Return a message, or a choice's without its token data."""
    return item.get("message", item)
