import asyncio
import json
import sqlite3
from contextlib import closing

import art_core as art


def test_the_rows_of_a_run_arrive(tmp_path, monkeypatch):
    async def log():
        async with art.Model(
            name="agent", project="demo", base_path=tmp_path, sinks=["sqlite"]
        ) as model:
            for step in (1, 2, 3):
                await model.log(metrics={"reward/mean": step / 4}, split="train", step=step)

    monkeypatch.setenv("ART_SQLITE", str(tmp_path / "runs.sqlite"))
    asyncio.run(log())
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as db:
        rows = db.execute("select run, step, metrics from rows order by seq").fetchall()
    assert [(run, step) for run, step, _ in rows] == [("demo/agent", step) for step in (1, 2, 3)]
    assert [json.loads(m)["reward/mean"] for _, _, m in rows] == [0.25, 0.5, 0.75]
