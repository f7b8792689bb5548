"""Kills forks of one run at seeded points of its phases, and compares the ends of the runs, bit by
bit, with that of a run that was not killed: `python main.py DIRECTORY KILLS exact|fast`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import attrs
import huggingface_hub.hf_file_system  # noqa: F401
import openai.resources.chat.completions  # noqa: F401
import peft  # noqa: F401
import starlette.applications  # noqa: F401
import torch
import torch._dynamo
import tqdm
import uvicorn  # noqa: F401
from bits import KINDS, differing, of_run
from life import life
from points import NAMED, NONE, PHASES, Call, Named, Points, now

import art_core.hooks.host
import art_core.model.trainable  # noqa: F401
import art_local.backend  # noqa: F401
from art_local.testing.tiny import save_tiny_model

MAX_LATE_S = 0.03
SEED = 5
Point = Call | Named
Place = tuple[str, int]


@attrs.frozen
class Program:
    """The run that each fork begins or resumes."""

    tiny: Path
    exact: bool
    chance: random.Random

    def counted(self, directory: Path) -> dict[Place, int]:
        """Run in a fork that is not killed. Return the number of calls in each phase and step, in
        the order of the run.
        """
        read, write = os.pipe()
        if not (pid := os.fork()):
            points = Points(counts=True)
            self._live(directory, points)
            with os.fdopen(write, "w") as file:
                json.dump([[*place, calls] for place, calls in points.calls.items()], file)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            found = file.read()
        assert os.waitpid(pid, 0)[1] == 0
        return {(phase, step): calls for phase, step, calls in json.loads(found)}

    def killed(self, directory: Path, point: Point | None) -> str | None:
        """Run in a fork that ends at a point. Return the phase in which it was killed, None if it
        got to the end of the run.
        """
        read, write = os.pipe()
        if not (pid := os.fork()):
            self._live(directory, Points(point, ask=lambda: os.write(write, b"k")))
            os._exit(0)
        os.close(write)
        if os.read(read, 1):  # b"" when the process has ended
            time.sleep(self.chance.random() * MAX_LATE_S)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(read)
        assert status in (0, -signal.SIGKILL), f"the run ended with {status}"
        return PHASES[now[0]] if status else None

    def _live(self, directory: Path, points: Points) -> None:
        now[0] = NONE
        # tqdm's own lock is one of all forks, and a killed one would keep it
        tqdm.tqdm.set_lock(threading.RLock())
        try:
            prepared(points)
            asyncio.run(life(directory, self.tiny, points, exact=self.exact))
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def prepared(points: Points) -> None:
    """Have the backend's work in its own thread counted, and make a named point deadly."""
    session = "art_local.session.model_session.ModelSession"
    store = "art_local.session.checkpoints.CheckpointStore"
    points.arm()
    points.within(f"{session}.open", "loading", lambda *_: 0)
    points.within(f"{session}.train", "train step", lambda session, *_: session.step + 1)
    points.within(f"{session}.train_sft", "SFT", lambda session, *_: session.step + 1)
    points.within(f"{store}.write", "checkpoint", lambda store, step, *_: step)


def points_of(
    number: int, calls: Mapping[Place, int], most: int, chance: random.Random
) -> list[Point]:
    """Return the points at which a run is killed, in the order of the run: a random one in each
    phase, and two named ones; of fewer than all, those in the phases of training.
    """
    order = list(calls)
    found: list[tuple[float, Point]] = []
    for phase in PHASES[:NONE]:
        step = chance.choice([step for name, step in order if name == phase])
        call = chance.randint(1, calls[phase, step])
        late = chance.random() < 0.5 and most >= len(PHASES)
        place = order.index((phase, step)) if step else chance.randrange(len(order))
        found.append((place + 0.5, Call(phase, step, call, late)))
    for named in (NAMED[number % len(NAMED)], NAMED[(number + len(NAMED) // 2) % len(NAMED)]):
        first = next(n for n, (phase, _) in enumerate(order) if phase == named.phase)
        found.append((first, named))
    found.sort(key=lambda pair: isinstance(pair[1], Named) or pair[1].phase == PHASES[0])
    return [point for _, point in sorted(found[:most], key=lambda pair: pair[0])]


@attrs.define
class Tally:
    """The kills of each phase, the runs that had them, and the bits that differed in these runs."""

    kills: Counter[str] = attrs.field(factory=Counter)
    runs: Counter[str] = attrs.field(factory=Counter)
    differing: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    all: Counter[str] = attrs.field(factory=Counter)
    """By kind, over all runs."""

    def add(self, kills: Counter[str], found: Mapping[str, int]) -> None:
        """Add a run: its kills by phase, and its differing bits by kind."""
        self.kills += kills
        self.all.update(found)
        for phase in kills:
            self.runs[phase] += 1
            self.differing.update({(phase, kind): bits for kind, bits in found.items()})

    def table(self) -> str:
        """Return one line per phase, under a heading."""
        rows = [("phase", "kills", "runs", *KINDS)]
        for phase in PHASES:
            if self.kills[phase] or phase != PHASES[NONE]:
                bits = [self.differing[phase, kind] for kind in KINDS]
                rows.append((phase, *map(str, (self.kills[phase], self.runs[phase], *bits))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(lines)


def main(base: Path, kills: int, *, exact: bool) -> None:
    """Kill until there were so many kills; print the table and, as the last line, the figures."""
    torch.set_num_threads(1)
    started = time.monotonic()
    program = Program(save_tiny_model(base / "tiny"), exact, random.Random(SEED))
    calls = program.counted(base / "whole")
    wanted = of_run(base / "whole")
    tally, runs = Tally(), 0
    while tally.kills.total() < kills:
        directory, died = base / f"{runs}", Counter[str]()
        points = points_of(runs, calls, kills - tally.kills.total(), program.chance)
        for point in [*points, None]:
            phase = program.killed(directory, point)
            if phase is None:
                break
            died[phase] += 1
        found = of_run(directory)
        tally.add(died, {kind: differing(wanted[kind], found[kind]) for kind in KINDS})
        runs += 1
    seconds = round(time.monotonic() - started)
    sizes = {kind: 8 * sum(map(len, wanted[kind].values())) for kind in KINDS}
    print(f"deterministic={exact}, {runs} runs, {seconds} s, bits that differ:\n{tally.table()}")
    figures = {"kills": tally.kills.total(), "bits differing": tally.all.total()}
    targets = {"kills": kills, "bits differing": 0} if exact else {"kills": kills}
    result = {
        "name": "bit-exact resume" if exact else "resume without deterministic=True",
        "figures": {
            **figures,
            "by phase": tally.kills,
            "by kind": tally.all,
            "bits of a run": sizes,
        },
        "targets": targets,
        "held": all(figures[name] == target for name, target in targets.items()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), exact=sys.argv[3] == "exact")
