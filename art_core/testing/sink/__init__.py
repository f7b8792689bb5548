"""The contract of sinks. Subclass `SinkContract`; give `make_sink` and `read_back`."""

from __future__ import annotations

from art_core.testing.sink.base import ended, row, run_in, some_rows
from art_core.testing.sink.lifecycle import SinkLifecycle
from art_core.testing.sink.rows import SinkRows
from art_core.testing.sink.side_effects import SinkSideEffects

__all__ = ["SinkContract", "ended", "row", "run_in", "some_rows"]


class SinkContract(SinkRows, SinkLifecycle, SinkSideEffects):
    """The tests of a sink.

    Fixtures to give: `make_sink` returns a function that makes a new sink of the same destination;
    `read_back` returns a function from a run to the rows that the destination holds, each once, in
    order of `seq`. If the destination holds no metrics, override `received`, which returns the
    seqs. If nothing can be read back, state `cannot_be_read_back = True`.
    """
