"""Micro-batches: what fits the budget, and where the loss is."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from art_core.rl.sequences import TokenSequence
from art_local.training.batches import collate, micro_batches, plan
from art_local.training.packing import Pack, packed
from art_local.training.windows import token_advantages


def sequence(ids, trainable, advantage=1.0, weight=1.0):
    return TokenSequence(
        token_ids=tuple(ids),
        trainable=tuple(trainable),
        logprobs=tuple(-float(i) if t else 0.0 for i, t in zip(ids, trainable, strict=True)),
        advantage=advantage,
        weight=weight,
    )


def test_rows_are_packed_longest_first_with_padding_counted():
    # 9 by itself; 5 and 4 fill 2 x 5; 1 joins the next batch
    assert plan([4, 9, 5, 1], budget=10) == [[1], [2, 0], [3]]


def test_a_row_longer_than_the_budget_stands_alone():
    assert plan([30, 2, 2], budget=10) == [[0], [1, 2]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_every_row_is_in_one_micro_batch_that_fits(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_a_row_bears_loss_where_its_next_token_is_trainable():
    batch = collate(
        [sequence([7, 8, 9], [False, False, True], 2.0, 0.5), sequence([5, 6], [False, True], -1.0)]
    )
    assert batch.ids_BS.tolist() == [[7, 8, 9], [5, 6, 0]]
    assert batch.rows_R.tolist() == [1, 3]
    assert batch.targets_R.tolist() == [9, 6]
    assert batch.old_logprobs_R.tolist() == [-9.0, -6.0]
    assert batch.advantages_R.tolist() == [2.0, -1.0]
    assert batch.weights_R.tolist() == [0.5, 1.0]
    assert batch.sequences_R.tolist() == [0, 1]


def test_tokens_of_different_turns_have_different_advantages():
    turns = (0.0, 2.0, 0.0, -1.0)
    one = sequence([7, 8, 9, 10], [False, True, False, True])
    one = attrs.evolve(one, token_advantages=turns)
    assert collate([one]).advantages_R.tolist() == [2.0, -1.0]
    assert token_advantages([one]).tolist() == [2.0, -1.0]
    assert packed([Pack(prefix=1, members=(0,))], [one]).advantages_R.tolist() == [2.0, -1.0]


def test_a_token_knows_which_sequence_of_the_step_it_belongs_to():
    short, long = sequence([5, 6], [False, True]), sequence([7, 8, 9], [False, True, True])
    (batch,) = micro_batches([short, long], 100)
    assert batch.targets_R.tolist() == [8, 9, 6]
    assert batch.sequences_R.tolist() == [1, 1, 0]
