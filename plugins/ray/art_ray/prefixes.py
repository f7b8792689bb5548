"""Which replica of an engine gets a request: the one that has computed the beginning of its prompt,
unless it has too much to do.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

BLOCK = 32
"""Tokens by which prompts are compared."""
REMEMBERED = 1 << 17
"""Blocks whose replica is remembered."""
SLACK = 1.25
"""How much more than its share a replica may have to do, as in consistent hashing with bounded
loads (Mirrokni, Thorup and Zadimoghaddam, 2018).
"""


class PrefixRouter:
    """Spreads prompts over replicas, numbered from 0. Not safe under threads: one event loop asks.

    A prompt goes where its longest known beginning went, so that a conversation stays with the
    replica that has its keys and values. One without a known beginning goes to the replica with the
    fewest requests.
    """

    def __init__(self, replicas: int) -> None:
        self.running = [0] * replicas
        self._known: OrderedDict[bytes, int] = OrderedDict()

    @contextmanager
    def routed(self, prompt_ids: Sequence[int], without: Collection[int] = ()) -> Iterator[int]:
        """Yield the replica of a prompt, which counts as running inside the block. Replicas in
        `without` get it only if all are in there.
        """
        replica = self.choose(prompt_ids, without)
        self.running[replica] += 1
        try:
            yield replica
        finally:
            self.running[replica] -= 1

    def choose(self, prompt_ids: Sequence[int], without: Collection[int] = ()) -> int:
        """Return the replica of a prompt, and remember its blocks."""
        replicas = range(len(self.running))
        able = [each for each in replicas if each not in without] or list(replicas)
        total = sum(self.running[each] for each in able)
        limit = math.ceil(SLACK * (total + 1) / len(able))
        blocks = list(_blocks(prompt_ids))
        known = (self._known.get(block) for block in reversed(blocks))
        found = next((each for each in known if each in able), None)
        if found is None or self.running[found] >= limit:
            found = min(able, key=lambda each: self.running[each])
        for block in blocks:
            self._known[block] = found
            self._known.move_to_end(block)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found


def _blocks(prompt_ids: Sequence[int]) -> Iterator[bytes]:
    """Yield a digest of each beginning of a prompt: of its first block, of its first two, ..."""
    digest = b""
    for start in range(0, len(prompt_ids), BLOCK):
        block = prompt_ids[start : start + BLOCK]
        digest = hashlib.blake2b(repr(block).encode(), digest_size=12, key=digest).digest()
        yield digest
