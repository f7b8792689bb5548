import pytest

from art_core.rl.batch import optimizer_steps


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (0, 4, []),
        (5, None, [5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (33, 32, [33]),
        (49, 32, [32, 17]),
        (3, 8, [3]),
    ],
)
def test_a_rest_of_less_than_half_joins_the_step_before_it(count, size, lengths):
    steps = optimizer_steps(range(count), size)
    assert [len(step) for step in steps] == lengths
    assert [n for step in steps for n in step] == list(range(count))
