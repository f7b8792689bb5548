"""Effects of a sink on the user's program: threads, failures, output, files and secrets."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import attrs
import pytest

from art_core.sinks.delivery import Delivery
from art_core.sinks.protocol import RunInfo, SinkSpec
from art_core.testing.sink.base import (
    MakeSink,
    Outage,
    ReadBack,
    SinkContractBase,
    ended,
    some_rows,
    write_log,
)
from art_core.testing.sink.doubles import FlakySink, SinkThread, network_down

_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password|credentials?)$", re.IGNORECASE)


class SinkSideEffects(SinkContractBase):
    """Threads, failures and what others can see."""

    def test_it_works_on_the_threads_of_the_core(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The core opens, writes and closes on a thread; nothing is left undelivered."""
        rows = some_rows(5)
        self.check(read_back, self.delivers(make_sink, run, rows), rows)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_write_that_raises_is_repeated(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo, when: str
    ) -> None:
        """Whether or not the rows went through, they are there once in the end."""
        rows = some_rows(4)
        trouble: dict[str, Any] = {when: ConnectionError("down")}
        given = self.delivers(lambda: FlakySink(make_sink(), **trouble), run, rows)
        self.check(read_back, given, rows)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_rows_that_the_destination_refused_are_not_lost(
        self,
        make_sink: MakeSink,
        read_back: ReadBack | None,
        run: RunInfo,
        destination_down: Outage,
    ) -> None:
        """`write` raises when the destination takes no rows, so that the core sends them again."""
        rows = some_rows(6)
        raised = False
        with self.opened(make_sink, run) as sink:
            sink.write(rows[:2])
            with destination_down():
                try:
                    sink.write(rows[2:4])
                except Exception:
                    raised = True
            sink.write(rows[2:] if raised else rows[4:])
            sink.close(ended(run))
        self.check(read_back, run, rows)
        if not raised:
            text = "the sink wrote although its destination was down: give destination_down"
            self.state(text)
            pytest.skip(text)

    def test_a_write_that_hangs_does_not_hold_up_the_run(
        self, make_sink: MakeSink, read_back: ReadBack | None, run: RunInfo
    ) -> None:
        """The run's close meets its deadline; the rows arrive when the sink goes on."""
        rows = some_rows(4)
        released = threading.Event()
        history = write_log(run, rows)
        spec = SinkSpec(
            name="hangs", create=lambda: FlakySink(make_sink(), released=released), summary="hangs"
        )
        delivery = Delivery.start([spec], run, history)
        (follower,) = delivery.followers
        report = delivery.close(0.3)["hangs"]
        assert report.undelivered == 4
        released.set()
        follower.close(time.monotonic() + self.seconds_per_call)
        assert follower.join().undelivered == 0
        self.check(read_back, attrs.evolve(run, sink=spec.name), rows)

    def test_close_returns(self, make_sink: MakeSink, run: RunInfo) -> None:
        """Within `seconds_per_call`, after rows were written."""
        self.written(make_sink, run, some_rows(2))

    def test_nothing_happens_before_it_is_opened(
        self, make_sink: MakeSink, run: RunInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Making a sink uses no network, and writes no file into the working directory or the
        run's directory.
        """
        monkeypatch.chdir(run.run_dir)
        with network_down(), SinkThread.running(make_sink, self.seconds_per_call):
            assert list(run.run_dir.iterdir()) == []

    def test_it_prints_nothing_where_results_are_printed(
        self, make_sink: MakeSink, run: RunInfo, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Standard output belongs to the user's program."""
        self.written(make_sink, run, some_rows(2))
        assert capfd.readouterr().out == ""

    def test_it_leaves_the_working_directory_clean(
        self,
        make_sink: MakeSink,
        run: RunInfo,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its files are in the run's directory, or where the user wants them."""
        here = tmp_path_factory.mktemp("here")
        monkeypatch.chdir(here)
        self.written(make_sink, run, some_rows(2))
        assert list(here.iterdir()) == []

    def test_it_leaves_no_thread_that_keeps_the_process_alive(
        self, make_sink: MakeSink, run: RunInfo
    ) -> None:
        """A training script ends when its last line has run."""
        before = set(threading.enumerate())
        self.written(make_sink, run, some_rows(2))
        left = [t for t in threading.enumerate() if t not in before and not t.daemon]
        assert left == []

    def test_its_repr_shows_no_secret(self, make_sink: MakeSink, run: RunInfo) -> None:
        """Logs and tracebacks show it. Attributes named like a key, token or password count."""
        with self.opened(make_sink, run) as sink:
            shown, texts = sink.show(), sink.texts()
            sink.close(ended(run))
        secrets = [name for name, text in texts.items() if text and _SECRET.search(name)]
        assert [name for name in secrets if texts[name] in shown] == []
