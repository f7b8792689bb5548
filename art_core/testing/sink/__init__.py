"""What every sink does. Subclass `SinkContract`, give `make_sink`, and `read_back` where it can."""

from __future__ import annotations

from art_core.testing.sink.kit import ended, row, run_in, some_rows
from art_core.testing.sink.lives import SinkLives
from art_core.testing.sink.manners import SinkManners
from art_core.testing.sink.values import SinkValues

__all__ = ["SinkContract", "ended", "row", "run_in", "some_rows"]


class SinkContract(SinkValues, SinkLives, SinkManners):
    """Fixtures to give: `make_sink`, a function that returns a new sink of the same destination,
    and `read_back`, which returns what the destination holds of a run, in order of `seq`, each row
    once. Where it holds no metrics, override `received`, which returns the rows' seqs alone.

    The attributes say what the destination can't hold. `factory`, `module:function`, names what
    returns the sink's spec; with it, a process that logs to the sink is killed.
    """
