"""Keys and values of ended sequences, for prompts that begin with the same tokens.

The next turn of a conversation repeats the earlier ones, and what is kept of them is not computed
again. Tokens are kept in blocks, each under the block before it, so that sequences with equal
beginnings share blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakKeyDictionary, ref

import attrs
from torch import Tensor

from art_local.engine.weights import Adapter

BLOCK = 32
"""Tokens of a block. Only whole blocks are found again."""

Read = Callable[[int, int], Tensor]
"""Returns keys and values [L, 2, K, B, D] of a sequence's tokens from one place to another."""


@attrs.define(eq=False)
class Block:
    """Keys and values [L, 2, K, BLOCK, D], and the blocks that follow, by their tokens.

    It does not own the block before it: a cycle would hold the values until Python collects
    garbage.
    """

    values: Tensor | None = None
    tokens: tuple[int, ...] = ()
    before: ref[Block] | None = None
    next: dict[tuple[int, ...], Block] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Tree:
    """The blocks of one adapter; the least recently used is the first of `used`."""

    root: Block = attrs.field(factory=Block)
    used: OrderedDict[Block, None] = attrs.field(factory=OrderedDict)

    def path(self, ids: Sequence[int]) -> list[Block]:
        """Return the blocks with which a sequence begins."""
        found, block = [], self.root
        for tokens in _blocks(ids):
            if tokens not in block.next:
                break
            block = block.next[tokens]
            found.append(block)
        for block in reversed(found):  # a block is dropped before those that it follows
            self.used.move_to_end(block)
        return found

    def drop_oldest(self) -> None:
        """Drop the block that was not used for the longest time; no block follows it."""
        block, _ = self.used.popitem(last=False)
        before = block.before() if block.before is not None else None
        assert before is not None
        del before.next[block.tokens]


class Prefixes:
    """The kept tokens of all adapters. Those of an adapter go when nothing refers to it.

    `asked` and `found` count prompt tokens, and those of them that were not computed.
    """

    def __init__(self) -> None:
        self._trees: WeakKeyDictionary[Adapter, Tree] = WeakKeyDictionary()
        self.asked = self.found = 0

    @property
    def tokens(self) -> int:
        """The number of tokens kept."""
        return BLOCK * sum(len(tree.used) for tree in self._trees.values())

    def longest(self, adapter: Adapter, ids: Sequence[int]) -> list[Tensor]:
        """Return the blocks of keys and values with which a sequence begins."""
        tree = self._trees.get(adapter)
        blocks = [] if tree is None else tree.path(ids)
        return [block.values for block in blocks if block.values is not None]

    def keep(self, adapter: Adapter, ids: Sequence[int], read: Read) -> None:
        """Keep a sequence's tokens; only blocks that are not kept yet are read."""
        tree = self._trees.pop(adapter, None) or Tree()
        self._trees[adapter] = tree  # the most recently used is the last
        known = tree.path(ids)
        block = known[-1] if known else tree.root
        new = []
        for number, tokens in enumerate(_blocks(ids)):
            if number >= len(known):
                begin = number * BLOCK
                following = Block(read(begin, begin + BLOCK), tokens, ref(block))
                block.next[tokens] = block = following
                new.append(block)
        for block in reversed(new):
            tree.used[block] = None
        for block in reversed(known):
            tree.used.move_to_end(block)

    def forget(self, adapter: Adapter) -> None:
        """Drop what is kept of an adapter."""
        self._trees.pop(adapter, None)

    def shrink(self, tokens: int) -> None:
        """Drop the least recently used blocks until at most so many tokens are kept."""
        excess = -(-(self.tokens - tokens) // BLOCK)
        for tree in list(self._trees.values()):
            for _ in range(min(excess, len(tree.used))):
                tree.drop_oldest()
                excess -= 1


def _blocks(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for begin in range(0, len(ids) - BLOCK + 1, BLOCK):
        yield tuple(ids[begin : begin + BLOCK])
