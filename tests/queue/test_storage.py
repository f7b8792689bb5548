"""What is acknowledged is on disk; a full disk acknowledges nothing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading

import pytest

import art_core as art
from art_core.queue import ready, slots
from art_core.queue.database import Database
from art_core.queue.payload import from_dict, from_json, outcomes_of, to_json
from art_core.queue.queue import AttemptQueue
from art_core.queue.slots import Submission
from queued import FAILURE, attempt, run_all, scenarios

TABLE = "create table if not exists numbers (n integer not null)"


@pytest.fixture
def database(tmp_path):
    made = Database(tmp_path / "queue" / "one.sqlite", TABLE)
    yield made
    made.close()


def adding(number):
    return lambda db: db.execute("insert into numbers values (?)", (number,)).lastrowid


def numbers(database):
    return [n for (n,) in database.read(lambda db: db.execute("select n from numbers").fetchall())]


def test_operations_that_wait_are_one_commit(database):
    begun, go_on = threading.Event(), threading.Event()

    def slow(db):
        begun.set()
        go_on.wait()
        return db.total_changes

    database.write(slow)
    begun.wait()
    futures = [database.write(adding(n)) for n in range(5)]
    commits = database.write(lambda db: db.execute("pragma data_version").fetchone())
    go_on.set()
    assert [f.result() for f in futures] == [1, 2, 3, 4, 5]
    assert commits.result()
    assert numbers(database) == [0, 1, 2, 3, 4]


def test_an_operation_that_raises_changes_nothing_and_the_others_count(database):
    begun, go_on = threading.Event(), threading.Event()
    database.write(lambda _: (begun.set(), go_on.wait()))
    begun.wait()

    def bad(db):
        adding(7)(db)
        raise art.ConfigError("no")

    before, failing, after = (database.write(op) for op in (adding(1), bad, adding(2)))
    cancelled = database.write(adding(3))
    cancelled.cancel()
    go_on.set()
    with pytest.raises(art.ConfigError, match="no"):
        failing.result()
    assert before.result()
    assert after.result()
    assert numbers(database) == [1, 2]


def test_what_the_disk_does_not_take_is_refused_alone(database):
    begun, go_on = threading.Event(), threading.Event()
    database.write(lambda _: (begun.set(), go_on.wait()))
    begun.wait()
    small = database.write(adding(1))
    bad = database.write(lambda db: db.execute("insert into numbers values (null)"))
    go_on.set()
    with pytest.raises(art.HistoryError, match="nothing of it was stored") as raised:
        bad.result()
    assert isinstance(raised.value.__cause__, sqlite3.IntegrityError)
    assert small.result()
    assert numbers(database) == [1]


def test_a_database_that_is_closed_refuses_and_has_done_what_waited(database):
    futures = [database.write(adding(n)) for n in range(300)]
    database.close()
    database.close()
    assert all(future.done() for future in futures)
    with pytest.raises(art.HistoryError, match="is closed"):
        database.write(adding(1))
    assert len(numbers(database)) == 300


def test_a_forked_child_is_refused(database):
    pid = os.fork()
    if not pid:
        try:
            database.write(adding(1))
        except art.HistoryError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path, opened):
    (tmp_path / "queue").write_text("a file")
    with pytest.raises(art.HistoryError, match="cannot open the queue"):
        opened()


def test_a_log_that_cannot_be_read_is_an_error_and_leaves_the_queue_closed(tmp_path, opened):
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        opened()
    (tmp_path / "history.jsonl").rmdir()
    opened()


async def test_a_queue_is_closed_at_the_end_of_its_block(tmp_path):
    async with AttemptQueue.open(tmp_path) as queue:
        await queue.fill(scenarios(1), size=1)
    with pytest.raises(art.HistoryError, match="is closed"):
        await queue.lease("a")


async def test_a_lease_that_was_renewed_or_ended_meanwhile_does_not_expire(queue):
    await queue.fill(scenarios(2), size=1)
    one, two = await queue.lease("a", 2)
    before = await queue._write(slots.open_leases)
    assert before == [(1, 0), (2, 0)]
    await queue.renew(one.key)
    await queue.submit(two.key, attempt())
    assert await queue._write(lambda db: slots.expire(db, before, 1.0)) == 0
    assert await queue.renew(one.key)


async def test_a_full_disk_acknowledges_nothing_and_the_queue_goes_on(queue):
    await queue.fill(scenarios(1), size=2)
    one, two = await queue.lease("a", 2)
    pages = await queue._write(lambda db: db.execute("pragma page_count").fetchone()[0])
    limit = await queue._write(lambda db: db.execute("pragma max_page_count").fetchone()[0])

    def full(db):
        db.execute(f"pragma max_page_count = {pages}")

    await queue._write(full)
    large = attempt()
    large.logs.append("x" * 100_000)
    with pytest.raises(art.HistoryError, match="database or disk is full"):
        await queue.submit(one.key, large)
    assert (await queue.counts()).leased == 2
    await queue._write(lambda db: db.execute(f"pragma max_page_count = {limit}").fetchone())
    assert await queue.submit(one.key, large) == "accepted"
    assert await queue.submit(two.key, attempt()) == "accepted"
    (group,) = (await queue.take(1, 1, step=0)).groups
    assert len(group.trajectories[0].logs[0]) == 100_000


async def test_trained_groups_take_no_room(queue):
    await queue.fill(scenarios(2), size=2)
    await run_all(queue)
    batch = await queue.take(2, 2, step=0)

    def stored(db):
        return db.execute("select count(*) from outcomes").fetchone()[0]

    assert await queue._write(stored) == 4
    await queue.commit(batch.cursor)
    assert await queue._write(stored) == 0


async def test_an_attempt_is_as_much_work_after_thousands_as_at_the_beginning(queue):
    await queue.fill(scenarios(10), size=1)

    def steps_of_one(db):
        """Count SQLite's own instructions."""
        steps = []
        db.set_progress_handler(lambda: steps.append(1), 1)
        ((_, lease),) = slots.lease(db, "a", 1, 50, 300.0)
        submission = Submission.of(lease.key, {None: attempt()}, 0)
        slots.submit(db, submission, 3)
        ready.ready_after(db, 2501)
        db.set_progress_handler(None, 1)
        return len(steps)

    def thousands(db):
        for _, lease in slots.lease(db, "a", 2500, None, 300.0):
            slots.submit(db, Submission.of(lease.key, {None: attempt()}, 0), 3)
        ready.commit(db, 2501)

    first = await queue._write(steps_of_one)
    await queue.fill(scenarios(3000), size=1)
    await queue._write(thousands)
    assert await queue._write(steps_of_one) < 1.2 * first


async def test_threads_and_event_loops_share_a_queue(queue):
    await queue.fill(scenarios(8), size=4)

    def work():
        asyncio.run(run_all(queue, n=4))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    batch = await queue.take(8, 8, step=0)
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert sorted(len(group) for group in batch.groups) == [4] * 8


def test_outcomes_are_the_same_after_the_disk():
    ids = list(range(900_000, 900_040))
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}
    turns = [
        {**choice, "prompt_token_ids": ids, "token_ids": [7, 8]},
        {**choice, "prompt_token_ids": [*ids, 7, 8, 9], "token_ids": [5]},
    ]
    trajectory = art.Trajectory(
        messages_and_choices=[{"role": "user", "content": "q"}, *turns],
        additional_histories=[art.History(messages_and_choices=[turns[0]])],
        reward=0.5,
    )
    line = to_json({"white": trajectory, "black": FAILURE})
    assert line.count(b"900038") == 1  # once in all conversations
    again = from_json(line)
    assert again["black"] == FAILURE
    assert again["white"] == trajectory


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"group": 3},
        {"group": {"trajectories": []}},
        {
            "players": ["a"],
            "failed": [],
            "group": {
                "trajectories": [],
                "failures": [],
                "metadata": {},
                "metrics": {},
                "logs": [],
            },
        },
    ],
)
def test_other_json_is_no_outcome(stored):
    with pytest.raises(art.ConfigError, match="not "):
        from_dict(stored)


@pytest.mark.parametrize("outcome", [{}, "text", {None: 3}])
def test_other_values_are_no_outcome(outcome):
    with pytest.raises(art.ConfigError, match="an attempt ends with trajectories"):
        outcomes_of(outcome)
