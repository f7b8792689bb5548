"""One way to log, in a process of its own: answers each line of rows with the seconds of each.

`log_paths.py` runs this file with the interpreter of a rival's environment: nothing but the
standard library is imported at its top.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Metrics = dict[str, float]
Log = Callable[[int, Metrics], Awaitable[Any] | Any]


@contextmanager
def orjson_and_write(directory: Path) -> Iterator[Log]:
    import orjson

    file = os.open(directory / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    option = orjson.OPT_APPEND_NEWLINE
    yield lambda _step, metrics: os.write(file, orjson.dumps(metrics, option=option))


@contextmanager
def art_core(directory: Path) -> Iterator[Log]:
    import art_core as art

    model = art.Model(name="row", project="bench", base_path=directory, sinks=[])
    yield lambda step, metrics: model.log(metrics=metrics, split="train", step=step)
    asyncio.run(model.close())


@contextmanager
def openpipe_art(directory: Path) -> Iterator[Log]:
    import art

    model = art.Model(name="row", project="bench", base_path=str(directory))
    yield lambda step, metrics: model.log(metrics=metrics, split="train", step=step)


@contextmanager
def trackio(directory: Path) -> Iterator[Log]:
    os.environ["TRACKIO_DIR"] = str(directory)
    import trackio

    trackio.init(project="bench", name="row")
    yield lambda step, metrics: trackio.log(metrics, step=step)
    trackio.finish()


@contextmanager
def wandb(directory: Path) -> Iterator[Log]:
    import wandb

    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    run = wandb.init(project="bench", dir=directory, mode="offline", settings=settings)
    yield lambda step, metrics: run.log({**metrics, "training_step": step})
    run.finish()


@contextmanager
def mlflow(uri: str) -> Iterator[Log]:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("bench")
    with mlflow.start_run():
        yield lambda step, metrics: mlflow.log_metrics(metrics, step=step)


OPENERS: dict[str, Callable[[Path], Any]] = {
    "orjson": orjson_and_write,
    "art-core": art_core,
    "openpipe-art": openpipe_art,
    "trackio": trackio,
    "wandb": wandb,
    "mlflow-files": lambda directory: mlflow((directory / "runs").as_uri()),
    "mlflow-sqlite": lambda directory: mlflow(f"sqlite:///{directory / 'runs.db'}"),
}


async def timed(log: Log, rows: list[tuple[int, Metrics]]) -> list[float]:
    """Seconds of each row, until the call has returned or was awaited."""
    seconds = []
    for step, metrics in rows:
        start = time.perf_counter()
        waits = log(step, metrics)
        if asyncio.iscoroutine(waits):
            await waits
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Serve one way on standard input and output; what libraries print goes to standard error."""
    way, distribution, directory = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    with OPENERS[way](Path(directory)) as log:
        answer(importlib.metadata.version(distribution))
        for line in sys.stdin:
            answer(asyncio.run(timed(log, json.loads(line))))


if __name__ == "__main__":
    main()
