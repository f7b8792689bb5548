"""Sequences are split into runs of neighbours with about equal numbers of tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from art_local.distributed.shares import balanced_shares


def test_shares_have_equal_tokens_where_they_can():
    assert balanced_shares([4, 4, 8, 2, 6], 3) == [range(2), range(2, 3), range(3, 5)]
    assert balanced_shares([9, 1, 1, 1], 2) == [range(1), range(1, 4)]
    assert balanced_shares([5], 3) == [range(1), range(0), range(0)]
    assert balanced_shares([], 2) == [range(0), range(0)]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9))
def test_every_sequence_is_in_one_share_and_no_share_is_much_larger(lengths, count):
    shares = balanced_shares(lengths, count)
    assert len(shares) == count
    assert [place for share in shares for place in share] == list(range(len(lengths)))
    largest = max((sum(lengths[p] for p in share) for share in shares), default=0)
    assert largest <= sum(lengths) / count + max(lengths, default=0)
