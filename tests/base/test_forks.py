"""A forked child closes what it inherits. In a process of its own: tests/faults/test_files.py."""

from __future__ import annotations

import os
import socket
from weakref import WeakSet

import pytest

from art_core.base import files
from art_core.base.errors import HistoryError
from art_core.log import history
from art_core.log.history import HistoryLog


def test_a_child_closes_descriptors_that_are_still_of_the_same_file(monkeypatch):
    monkeypatch.setattr(files, "_kept", {})
    monkeypatch.setattr(files, "_sockets", WeakSet())
    kept, reused = os.pipe()
    ours, theirs = socket.socketpair()
    files.close_in_children(kept)
    files.close_in_children(reused)
    files.close_socket_in_children(ours)
    os.close(reused)
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == reused
    with theirs, ours.makefile("rb"):
        files._close_all()
        assert theirs.recv(1) == b""
        assert ours.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)
    os.close(other)


def test_a_log_of_the_parent_does_nothing_in_a_child_and_takes_no_lock(tmp_path, monkeypatch):
    log = HistoryLog.open(tmp_path / "history.jsonl")
    with monkeypatch.context() as child, log._lock:
        child.setitem(history._this, "process", 0)
        with pytest.raises(HistoryError, match="before this process was forked"):
            log.append(None)
        log.sync()
        log.close()
    log.sync()
    log.close()
    HistoryLog.open(tmp_path / "history.jsonl").close()
