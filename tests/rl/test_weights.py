import pytest

import art_core as art
from art_core.rl.batch import token_weight, window_total
from art_core.rl.sequences import TokenSequence


def sequence(tokens, weight):
    return TokenSequence(
        token_ids=(1,) * (tokens + 1),
        trainable=(False,) + (True,) * tokens,
        logprobs=(0.0,) * (tokens + 1),
        weight=weight,
    )


@pytest.mark.parametrize(
    ("normalization", "weights", "total"),
    [
        # a trajectory of two sequences, with 2 and 6 tokens, and one of a single sequence with 4
        ("trajectory", [1 / 8, 1 / 8, 1 / 4], 2.0),
        ("sequence", [1 / 2, 1 / 6, 1 / 4], 3.0),
        ("token", [1.0, 1.0, 1.0], 12.0),
        ("constant", [1 / 16, 1 / 16, 1 / 16], 3.0),
    ],
)
def test_a_normalization_says_what_counts_once(normalization, weights, total):
    length = {"normalization_length": 16} if normalization == "constant" else {}
    loss = art.TrainConfig(normalization=normalization, **length).loss
    sizes = [(2, 8), (6, 8), (4, 4)]
    found = [token_weight(loss, of_sequence=s, of_trajectory=t) for s, t in sizes]
    assert found == pytest.approx(weights)
    made = [sequence(s, weight) for (s, _), weight in zip(sizes, found, strict=True)]
    assert window_total(loss, made) == pytest.approx(total)
