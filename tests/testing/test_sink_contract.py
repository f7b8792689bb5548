"""The contract of sinks: what it accepts, what its author has to state, and what it reports."""

import sys
from pathlib import Path

import pytest

from art_core.testing.sink import SinkContract, run_in
from art_core.testing.sink.outage import disk_full_and_network_down
from art_core.testing.sink.thread import SinkThread

sys.path.append(str(Path(__file__).parent))
from sinks_to_try import ROWS, FileSink, MemorySink, read

pytest_plugins = ["pytester"]


class TestFileSink(SinkContract):
    factory = "sinks_to_try:file_sink"

    @pytest.fixture(autouse=True)
    def others_find_the_sink(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    @pytest.fixture
    def make_sink(self):
        return FileSink

    @pytest.fixture
    def read_back(self):
        def rows(run):
            return [(r["step"], r["split"], r["metrics"]) for r in read(run.run_dir / "rows")]

        return rows


class TestMemorySink(SinkContract):
    keeps_split = False
    keeps_empty_rows = False

    @pytest.fixture
    def make_sink(self):
        return MemorySink

    @pytest.fixture
    def read_back(self):
        return lambda run: [(r.step, None, r.metrics) for _, r in sorted(ROWS[run.run_dir].items())]


class TestFileSinkBySeqs(SinkContract):
    @pytest.fixture
    def make_sink(self):
        return FileSink

    def received(self, run):
        return [line["seq"] for line in read(run.run_dir / "rows")]


DROPS_EVERY_ROW = """
    import pytest
    from art_core.testing.sink import SinkContract

    class Drops:
        def open(self, run): ...
        def write(self, rows): ...
        def close(self, run): ...

    class TestDrops(SinkContract):
        {setting}
        @pytest.fixture
        def make_sink(self):
            return Drops
"""


@pytest.fixture
def outcome(pytester):
    """Run the contract of a sink that drops every row, with a setting."""

    def run(setting):
        pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
        pytester.makepyfile(DROPS_EVERY_ROW.format(setting=setting))
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "not hangs")

    return run


def test_a_sink_whose_rows_cannot_be_seen_fails(outcome):
    result = outcome("")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    counts = result.parseoutcomes()
    assert counts["failed"] > counts["passed"]
    result.stdout.fnmatch_lines(["*Give the fixture read_back*cannot_be_read_back = True*"])


def test_a_sink_that_is_stated_to_be_unreadable_is_reported(outcome):
    result = outcome("cannot_be_read_back = True")
    assert result.ret == pytest.ExitCode.OK
    counts = result.parseoutcomes()
    assert counts["skipped"] > counts["passed"]
    result.stdout.fnmatch_lines(
        [
            "*contracts: stated by their authors*",
            "TestDrops: cannot_be_read_back = True: rows were written, and what arrived was not *",
            "TestDrops: factory is not given: no process was killed*",
        ]
    )


def test_a_sink_that_drops_rows_fails_when_its_rows_can_be_seen(outcome):
    result = outcome("def received(self, run): return []")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_files_and_connections_fail_while_the_destination_is_down(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "open").open("w") as file:
        with disk_full_and_network_down():
            file.write("text")
            with pytest.raises(OSError, match="large"):
                file.flush()
            with socket.socket() as client, pytest.raises(ConnectionError, match="is down"):
                client.connect(server.getsockname())
            one, other = socket.socketpair()
            one.sendall(b"x")
            assert other.recv(1) == b"x"
            one.close()
            other.close()
        socket.create_connection(server.getsockname()).close()


def test_a_timeout_of_the_sinks_own_is_not_a_call_that_hangs(tmp_path):
    class TimesOut(FileSink):
        def open(self, run):
            raise TimeoutError("the service did not answer")

    with (
        SinkThread.running(TimesOut, 20.0) as sink,
        pytest.raises(TimeoutError, match="did not answer"),
    ):
        sink.open(run_in(tmp_path))


def test_the_contract_asks_for_make_sink():
    given = SinkContract.make_sink
    with pytest.raises(AssertionError, match="give the fixture make_sink"):
        getattr(given, "__wrapped__", given)(SinkContract())
