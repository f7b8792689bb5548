"""The end of a program: its open runs get a status, and their sinks the rows."""

from __future__ import annotations

import asyncio
import builtins
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import attrs
import orjson
import pytest

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.run import exits
from art_core.run.exits import ProgramEnd, Terminated, others_work, status_of
from waiting import until

PROGRAM = """
import asyncio, os, signal, sys, threading, time
import art_core as art

class Sink:
    def open(self, run): ...
    def write(self, rows):
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor() as pool:
            for row in rows:
                pool.submit(print, "row", row.step, flush=True).result()
    def close(self, run):
        print("status", run.status, flush=True)

def create():
    if sys.argv[3] != "slow":
        return Sink()
    time.sleep(0.3)
    import concurrent.futures.process  # registers with threading, which a late import could not
    return Sink()

spec = art.SinkSpec(name="own", create=create, summary="")
model = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[spec])

async def log():
    model.metrics_builder().add_cost("gpu", 0.5)
    await model.log(metrics={"reward/mean": 0.5}, split="train", step=1)
    model.metrics_builder().add_cost("gpu", 0.25)

async def inside(code):
    async with model:
        exec(code)

asyncio.run(log())
exec(sys.argv[2])
"""


@pytest.fixture
def ended(tmp_path):
    """Run a program that logs a row and ends somehow; return its output and `status.json`."""

    def end(how, sink="fast"):
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), how, sink],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        status = orjson.loads((tmp_path / "p" / "models" / "m" / "status.json").read_bytes())
        return ran, status

    return end


THREAD = """
def late():
    time.sleep(0.3)
    asyncio.run(model.log(metrics={"reward/mean": 0.5}, split="train", step=2))
threading.Thread(target=late).start()
"""


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("pass", "finished", None),
        ("sys.exit(0)", "finished", None),
        ("sys.exit(3)", "failed", "SystemExit: 3"),
        ("exit(3)", "failed", "SystemExit: 3"),
        ("try:\n sys.exit(3)\nexcept SystemExit:\n pass", "finished", None),
        ("asyncio.run(inside('sys.exit()'))", "finished", None),
        ("asyncio.run(inside('raise SystemExit(\"no\")'))", "failed", "SystemExit: no"),
        ("asyncio.run(inside('1/0'))", "failed", "ZeroDivisionError: division by zero"),
        ("1/0", "failed", "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "interrupted", None),
        (THREAD, "finished", None),
    ],
)
def test_the_end_of_a_program_is_the_status_of_its_runs(ended, how, status, reason):
    ran, stored = ended(how, "slow")
    assert (stored["status"], stored.get("reason")) == (status, reason)
    last = "row 2" if how == THREAD else "row 1"  # has what waited after the first
    assert ran.stdout.splitlines() == ["row 1", last, f"status {status}"], ran.stderr
    assert "Traceback" not in ran.stderr or "ZeroDivisionError" in ran.stderr


def test_ctrl_c_ends_a_program_with_one_line_that_says_how_to_resume(ended):
    ran, stored = ended("os.kill(os.getpid(), signal.SIGINT)")
    assert stored["status"] == "interrupted"
    assert ran.returncode == -signal.SIGINT
    assert ran.stderr == "interrupted: p/m is kept at step 1; start again to resume\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (SystemExit(), "finished"),
        (SystemExit(0), "finished"),
        (SystemExit(1), "failed"),
        (SystemExit("no"), "failed"),
        (Terminated(143), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (asyncio.CancelledError(), "interrupted"),
        (ValueError(), "failed"),
    ],
)
def test_an_exception_gives_a_status(error, status):
    assert status_of(error) == status


@attrs.define(eq=False)
class Run:
    """An open run that notes how it is closed."""

    name: str = "p/m"
    last_step: int = 3
    fault: BaseException | None = None
    calls: list = attrs.field(factory=list)

    def close_at_exit(self, status, timeout, error):
        self.calls.append((status, timeout > 0, error))
        if self.fault:
            raise self.fault


@pytest.fixture
def program(monkeypatch):
    """A program that is watched; what it changes in Python is as before afterwards."""
    changed = [(sys, "exit"), (sys, "excepthook"), (threading, "_shutdown")]
    for place, name in [*changed, (type(builtins.exit), "__call__")]:
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.setattr(exits.atexit, "register", lambda function: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield ProgramEnd()
    signal.signal(signal.SIGTERM, before)


def test_open_runs_are_closed_and_closed_ones_are_not(program):
    one, two = Run(), Run()
    program.opened(one)
    program.opened(two)
    program.closed(two, "finished")
    program.closed(two, "finished")
    program.close()
    assert one.calls == [("finished", True, None)]
    assert program.main_frame is None
    assert two.calls == []


def test_a_run_that_cannot_be_closed_does_not_keep_the_others_from_it(program, caplog):
    runs = [Run(fault=OSError("full")), Run(fault=KeyboardInterrupt()), Run()]
    for run in runs:
        program.opened(run)
    program.close()
    assert [run.calls[0][1] for run in runs] == [True, True, False]
    assert "p/m could not be closed: full" in caplog.text


def test_a_forked_process_leaves_the_runs_to_its_parent_and_has_its_own(program):
    parents, own = Run(), Run()
    program.opened(parents)
    program.pid = -1
    program.before_shutdown()
    program.close()
    assert parents.calls == []
    program.opened(own)
    assert program.runs == [own]


def test_runs_are_closed_when_no_thread_is_busy_any_more(program, monkeypatch):
    answers, run = [True, True, False, False], Run()
    monkeypatch.setattr(exits, "others_work", lambda: answers.pop(0))
    program.before_shutdown()
    assert len(answers) == 4
    program.opened(run)
    program.before_shutdown()
    assert (run.calls, answers) == ([("finished", True, None)], [])


@pytest.mark.parametrize("end", ["deadline", "Ctrl-C"])
def test_threads_that_go_on_keep_runs_open(program, monkeypatch, end):
    run, now = Run(), iter(range(99))
    program.opened(run)
    monkeypatch.setattr(exits, "others_work", lambda: True)

    def sleep(seconds):
        if end == "Ctrl-C":
            raise KeyboardInterrupt

    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=sleep)
    monkeypatch.setattr(exits, "time", clock)
    program.before_shutdown()
    assert run.calls == []
    assert next(now) == (11 if end == "deadline" else 2)


def test_a_shutdown_of_threads_closes_runs_first(monkeypatch):
    done = []
    monkeypatch.setattr(threading, "_shutdown", lambda: done.append("threads"))
    exits._first(lambda: done.append("runs"), threading._shutdown)()
    assert done == ["runs", "threads"]


def test_a_thread_at_work_counts_and_one_of_a_pool_that_waits_does_not():
    leave, there = threading.Event(), threading.Event()

    def work():
        there.set()
        leave.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        until(lambda: not others_work())
        pool.submit(work)
        there.wait()
        assert others_work()
        leave.set()
    daemon = threading.Thread(target=there.wait, daemon=True)
    daemon.start()
    until(lambda: not others_work())


def test_a_pool_of_processes_that_is_not_shut_down_does_not_count(monkeypatch):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(int).result() == 0
        managers = [t for t in threading.enumerate() if not t.daemon]
        assert len(managers) >= 2  # this one, and the pool's
        until(lambda: not others_work())


def test_the_status_of_an_exit_is_noted_on_the_main_thread_only(program):
    program.opened(Run())
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(sys.exit, 4).exception(), SystemExit)
    assert program.exit is None
    with pytest.raises(SystemExit):
        sys.exit(3)
    assert program.exit.code == 3
    for given, named in (((), {}), ((4,), {}), ((), {"code": 5})):
        with pytest.raises(SystemExit):
            type(builtins.exit).__call__(SimpleNamespace(), *given, **named)
        assert program.exit.code == (given[0] if given else named.get("code"))


def test_without_the_hook_of_threads_runs_are_closed_at_exit(program, monkeypatch):
    monkeypatch.delattr(threading, "_shutdown")
    registered = []
    monkeypatch.setattr(exits.atexit, "register", registered.append)
    program.opened(Run())
    assert registered == [program.close]


def test_python_without_the_module_site_has_no_exit_to_note(program, monkeypatch):
    monkeypatch.delattr(builtins, "exit")
    program.opened(Run())
    assert len(program.runs) == 1


def test_ctrl_c_is_a_line_for_each_run_and_other_errors_are_shown_as_before(program, capsys):
    shown = []
    hook = program.brief(lambda *given: shown.append(given[0]))
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    program.opened(Run())
    program.opened(closed := Run(name="p/other", last_step=7))
    program.closed(closed, "interrupted")
    hook(ValueError, ValueError(), None)
    assert shown == [KeyboardInterrupt, ValueError]
    hook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.splitlines() == [
        "interrupted: p/other is kept at step 7; start again to resume",
        "interrupted: p/m is kept at step 3; start again to resume",
    ]
    program.opened(closed)
    assert program.interrupted == {}


def test_sigterm_ends_a_program_as_ctrl_c_does_and_a_forked_one_at_once(program, monkeypatch):
    program.opened(Run())
    assert signal.getsignal(signal.SIGTERM) == program.terminate
    with pytest.raises(Terminated):
        program.terminate(signal.SIGTERM, None)
    assert status_of(program.exit) == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    killed = []
    monkeypatch.setattr(exits.os, "kill", lambda *given: killed.append(given))
    program.pid = -1
    program.terminate(signal.SIGTERM, None)
    assert killed == [(os.getpid(), signal.SIGTERM)]


def test_a_handler_of_the_programs_own_stays(program):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    program.opened(Run())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def frame(operation, **more):
    code = SimpleNamespace(co_code=bytes([exits.dis.opmap[operation]]))
    return SimpleNamespace(f_code=code, f_lasti=0, **more)


def test_the_end_is_an_error_of_the_main_program_else_what_sys_exit_was_given(program, monkeypatch):
    main, other = frame("CALL"), frame("CALL")
    program.main_frame, program.exit = main, SystemExit(3)
    assert program.ending() is program.exit
    for at, end in ((main, "last"), (other, "exit")):
        last = SimpleNamespace(__traceback__=SimpleNamespace(tb_frame=at))
        monkeypatch.setattr(sys, "last_value", last, raising=False)
        assert program.ending() is (last if end == "last" else program.exit)
    program.main_frame = frame("RETURN_VALUE")
    assert program.ending() is None
    program.main_frame = main
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert program.ending() is None
    program.main_frame = None
    assert program.ending() is None


async def in_finally(model, error):
    try:
        raise error
    finally:
        await model.close()


async def in_except(model, error):
    try:
        raise error
    except BaseException:
        await model.close()
        raise


async def around(model, error):
    try:
        raise error
    except BaseException:
        await afterwards(model, error)
        raise


async def afterwards(model, error):
    await model.close()
    raise error


async def chosen(model, error):
    try:
        raise error
    finally:
        await model.close(status="stopped early")


@pytest.mark.parametrize("kind", [art.Model, art.TrainableModel])
@pytest.mark.parametrize(
    ("end", "error", "status"),
    [
        (in_finally, ValueError("boo"), "failed"),
        (in_except, ValueError("boo"), "failed"),
        (in_finally, asyncio.CancelledError(), "interrupted"),
        (in_finally, SystemExit(0), "finished"),
        (around, ValueError("of another run"), "finished"),
        (afterwards, ValueError("later"), "finished"),
        (chosen, ValueError("boo"), "stopped early"),
    ],
)
async def test_a_close_while_an_exception_is_handled_has_its_status(
    tmp_path, kind, end, error, status
):
    more = {} if kind is art.Model else {"base_model": "echo-base"}
    options = {"sinks": [], "plugins": art.Plugins(), "base_path": tmp_path, **more}
    model = kind(name="m", project="p", **options)
    model.run.record("train", 1)
    with pytest.raises(type(error)):
        await end(model, error)
    state = LoggedRun(model.run_dir).state()
    assert (state.status, state.reason) == (
        status,
        "ValueError: boo" if status not in ("finished", "interrupted") else None,
    )
