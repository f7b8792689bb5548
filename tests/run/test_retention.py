"""The checkpoints that stay after each step."""

from __future__ import annotations

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend

GROUPS = [art.TrajectoryGroup([art.Trajectory(reward=r) for r in (0.0, 1.0)])]
REWARDS = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.8, 5: 0.3}


@pytest.fixture
async def left(tmp_path):
    """Train steps whose `val/reward` is logged; return the steps that have a checkpoint then."""

    async def train(steps=8, rewards=REWARDS, backend=None, **options):
        model = art.TrainableModel(
            name="m", project="p", base_model="b", base_path=tmp_path, sinks=[], **options
        )
        backend = backend or EchoBackend()
        await model.register(backend)
        for step in range(1, steps + 1):
            await model.train(GROUPS)
            if step in rewards:
                await model.log(metrics={"val/reward": rewards[step]}, split="val", step=step)
        found = [checkpoint.step for checkpoint in await model.checkpoints()]
        await model.close()
        await backend.close()
        return found

    return train


async def test_by_default_the_three_newest_and_the_two_best_stay(left):
    assert await left() == [2, 4, 6, 7, 8]


async def test_without_the_metric_the_newest_stay(left):
    assert await left(rewards={}) == [6, 7, 8]


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        (art.keep_all(), [1, 2, 3, 4, 5, 6, 7, 8]),
        (art.keep_every(3), [3, 6, 8]),
        (art.keep_recent_and_top(1, 1), [2, 8]),
        (art.keep_recent_and_top(2, 0), [7, 8]),
        (
            lambda stored: [
                s for s, reward in stored.values("val/reward").items() if reward < 0.25
            ],
            [1, 3, 8],
        ),
        (lambda stored: (), [8]),
    ],
    ids=["all", "every third", "one and one", "two", "a function", "none"],
)
async def test_a_strategy_chooses(left, strategy, steps):
    assert await left(keep_checkpoints=strategy) == steps


@pytest.mark.parametrize(
    "made",
    [
        lambda: art.keep_every(0),
        lambda: art.keep_every(True),
        lambda: art.keep_recent_and_top(0),
        lambda: art.keep_recent_and_top(3, -1),
        lambda: art.keep_recent_and_top(3, 1.5),
    ],
)
def test_a_count_that_is_none_is_refused(made):
    with pytest.raises(art.ConfigError, match="must be a whole number from"):
        made()


async def test_a_strategy_that_fails_keeps_everything_and_the_step(left, caplog):
    def broken(stored):
        raise ZeroDivisionError("no")

    assert await left(steps=2, keep_checkpoints=broken) == [1, 2]
    assert "old checkpoints stay: ZeroDivisionError: no" in caplog.text


async def test_a_step_without_a_checkpoint_deletes_nothing(left, tmp_path):
    assert await left(steps=3) == [1, 2, 3]
    model = art.TrainableModel(
        name="m",
        project="p",
        base_model="b",
        base_path=tmp_path,
        sinks=[],
        keep_checkpoints=art.keep_recent_and_top(1, 0),
    )
    backend = EchoBackend()
    await model.register(backend)
    await model.train(GROUPS, save_checkpoint=False)
    assert [c.step for c in await model.checkpoints()] == [1, 2, 3]
    await model.close()
    await backend.close()
