"""`art checkpoints`: the checkpoints of runs, listed, deleted, forked, merged and compared."""
