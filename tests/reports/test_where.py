"""Conditions on trajectories."""

import pytest

import art_core as art
from art_core.reports.where import condition

TRAJECTORY = art.Trajectory(
    messages_and_choices=[
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ],
    reward=0.9,
    metrics={"correct": 1, "length": 5.0},
    metadata={"model": "a", "step name": 3},
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("reward > 0.8", True),
        (" 0.5 < reward <= 0.9 ", True),
        ("reward > 0.8 and metrics.correct == 1", True),
        ("reward < 0.8 or turns == 1", True),
        ("not known", False),
        ("reward > -1", True),
        ("messages != 2", False),
        ("metadata.model in ('a', 'b')", True),
        ("metadata.model not in ['a']", False),
        ('metadata["step name"] >= 3', True),
        ("metadata.missing == 1", False),
        ("metadata.missing == None", True),
        ("metadata.model > 3", False),  # a text and a number are not compared
        ("metrics.correct", True),
        ("True", True),
    ],
)
def test_a_condition_compares_fields_with_constants(text, holds):
    assert condition(text)(TRAJECTORY) is holds


def test_an_unknown_outcome_fulfills_no_comparison():
    unknown = art.Trajectory(reward=None)
    texts = ("reward > 0", "reward <= 0", "reward != 0", "known")
    assert [condition(text)(unknown) for text in texts] == [False] * 4
    assert condition("not known")(unknown)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "reward.__class__",
        "metadata.model.upper() == 'A'",
        "metadata[0] == 1",
        "reward + 1 > 0",
        "9 ** 9 ** 9 > reward",
        "[r for r in (1, 2)]",
        "lambda: 1",
        "reward is None",
        "~reward",
        "-'a' < reward",
        "reward > 1j",
        "rewrd > 1",
        "reward >",
        "",
        "(" * 500,
        "reward > 1\x00",
        b"reward > 1".decode() * 300,
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(art.ConfigError, match="condition"):
        condition(text)
