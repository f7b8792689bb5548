"""How a sink behaves beside the user's program: on threads, in trouble, and quietly."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from art_core.sinks.delivery import Delivery
from art_core.sinks.protocol import RunInfo, SinkSpec
from art_core.testing.sink.kit import (
    CLOSE_SECONDS,
    MakeSink,
    ReadBack,
    SinkKit,
    Troubled,
    kept,
    some_rows,
)


class SinkManners(SinkKit):
    """Threads, failures and quiet."""

    def test_it_works_on_the_threads_of_the_core(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Nothing is left undelivered."""
        rows = some_rows(5)
        self.delivers(make_sink, run, rows)
        self.check(read_back, run, rows)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_write_that_raises_is_made_good(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo, when: str
    ) -> None:
        """Whether or not the rows went through, they are there once in the end."""
        rows = some_rows(4)
        trouble: dict[str, Any] = {when: ConnectionError("down")}
        self.delivers(lambda: Troubled(make_sink(), **trouble), run, rows)
        self.check(read_back, run, rows)

    def test_a_write_that_hangs_holds_up_nobody(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """Close meets its deadline; what was missing comes when the sink goes on."""
        rows = some_rows(4)
        held = threading.Event()
        history = kept(run, rows)
        spec = SinkSpec(
            name="hangs", create=lambda: Troubled(make_sink(), held=held), summary="hangs"
        )
        delivery = Delivery.start([spec], run, history)
        (follower,) = delivery.followers
        report = delivery.close(0.3)["hangs"]
        assert report.undelivered == 4
        held.set()
        follower.close(time.monotonic() + CLOSE_SECONDS)
        assert follower.join().undelivered == 0
        self.check(read_back, run, rows)

    def test_it_prints_nothing_where_results_are_printed(
        self, make_sink: MakeSink, run: RunInfo, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Standard output belongs to the user's program."""
        self.sent(make_sink, None, run, some_rows(2))
        assert capfd.readouterr().out == ""

    def test_it_leaves_the_working_directory_clean(
        self,
        make_sink: MakeSink,
        run: RunInfo,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What it keeps lies in the run's directory, or where the user said."""
        here = tmp_path_factory.mktemp("here")
        monkeypatch.chdir(here)
        self.sent(make_sink, None, run, some_rows(2))
        assert list(here.iterdir()) == []

    def test_it_leaves_no_thread_that_keeps_the_process_alive(
        self, make_sink: MakeSink, run: RunInfo
    ) -> None:
        """A training script ends when it ends."""
        before = set(threading.enumerate())
        self.sent(make_sink, None, run, some_rows(2))
        left = [t for t in threading.enumerate() if t not in before and not t.daemon]
        assert left == []
