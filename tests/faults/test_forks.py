"""Forked children of a trainer: a process pool's, a data loader's. They outlive it here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

import art_core as art
from art_core.base.errors import HistoryError
from waiting import alive

TRAINER = """
import os, sys, time, art_core as art
from art_core.endpoint.listener import listening_socket
class Sink:
    def open(self, run): ...
    def write(self, rows): ...
    def close(self, run): ...
sink = art.SinkSpec(name="list", create=Sink, summary="")
model = art.Model(name="m", project="p", base_path=sys.argv[1], sinks=[sink])
run = model.run
run.record("train", 1, metrics={"costs/gpu": 0.25})
while not run.delivery.followers[0].opened:
    time.sleep(0.01)
listener = listening_socket("127.0.0.1", 0)
listener.listen()
port = listener.getsockname()[1]
"""
FORKED = """
ready, tell = os.pipe()
child = os.fork()
if not child:
    taken = os.open(os.devnull, os.O_RDONLY)
    try:
        run.record("train", 2)
        os.write(tell, b"it logged")
    except art.HistoryError:
        run.close(), run.history.sync(), run.history.close(), listener.close()
        os.fstat(taken)
        os.write(tell, b"ready")
    os.close(1); os.close(2); time.sleep(600)
assert os.read(ready, 9) == b"ready"
print(child, port, flush=True)
"""
ENDS = {
    "killed": "os.kill(os.getpid(), 9)",
    "closed": "run.close(); listener.close(); time.sleep(600)",
}


@pytest.mark.parametrize("end", ENDS)
def test_forked_children_keep_no_lock_and_no_port_of_their_parent(tmp_path, end):
    code = textwrap.dedent(TRAINER + FORKED) + ENDS[end].replace(
        "time.sleep", "print(0, flush=True); time.sleep"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        child, port = map(int, trainer.stdout.readline().split())
        trainer.stdout.readline()  # closed, or the end of the output
        try:
            assert alive(child)
            model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
            model.run.record("train", 2)
            model.run.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 5)
        finally:
            os.kill(child, signal.SIGKILL)
            trainer.kill()


def test_a_child_that_forks_while_a_thread_logs_is_told_so_and_does_not_wait(tmp_path):
    code = (
        TRAINER
        + """
run._lock.acquire(), run.history._lock.acquire()  # as a thread that just logs
if not os.fork():
    try:
        run.record("train", 2)
    except art.HistoryError as error:
        assert "before this process was forked" in str(error)
        os._exit(3)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
os._exit(0)
"""
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


def test_while_the_parent_lives_the_run_stays_in_use(tmp_path):
    code = TRAINER + FORKED + "time.sleep(600)"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        child, port = map(int, trainer.stdout.readline().split())
        try:
            model = art.Model(name="m", project="p", base_path=tmp_path, sinks=[])
            with pytest.raises(HistoryError, match="in use by another process"):
                model.run  # noqa: B018
            socket.create_connection(("127.0.0.1", port), 5).close()
        finally:
            os.kill(child, signal.SIGKILL)
            trainer.kill()
