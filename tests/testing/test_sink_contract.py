"""The contract of sinks: what it accepts, what its author has to state, and what it reports."""

import sys
from pathlib import Path

import pytest

from art_core.testing.sink import SinkContract, run_in
from art_core.testing.sink.doubles import SinkThread, disk_full_and_network_down

sys.path.append(str(Path(__file__).parent))
from mutants.runner import run_text
from sinks_to_try import ROWS, FileSink, MemorySink, read


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
def run(tmp_path, capsys):
    """Run the contract of a sink that drops every row; return code, outcomes and output."""

    def run(setting):
        text = DROPS_EVERY_ROW.format(setting=setting)
        code, outcomes = run_text(text, tmp_path, "-k", "not hangs")
        return code, outcomes, capsys.readouterr().out

    return run


def test_a_sink_whose_rows_cannot_be_seen_fails(run):
    code, outcomes, _ = run("")
    assert code == pytest.ExitCode.TESTS_FAILED
    asking = [why for why in outcomes if "Give the fixture read_back" in why]
    assert len(asking) > len(outcomes) / 2


def test_a_sink_that_is_stated_to_be_unreadable_is_reported(run):
    code, outcomes, out = run("cannot_be_read_back = True")
    assert code == pytest.ExitCode.OK
    assert outcomes.count("skipped") > outcomes.count("passed")
    assert "contracts: stated by their authors" in out
    assert "TestDrops: cannot_be_read_back = True: rows were written, and what arrived" in out
    assert "TestDrops: factory is not given: no process was killed" in out


def test_a_sink_that_drops_rows_fails_when_its_rows_can_be_seen(run):
    code, _, _ = run("def received(self, run): return []")
    assert code == pytest.ExitCode.TESTS_FAILED


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
