from datetime import UTC, datetime

import pytest

import art_core as art
from art_core.base.errors import ConfigError
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.run.checkpoints import Retention


@pytest.fixture
def retention(tmp_path):
    """Return a function of rows, (step, key, value), that makes their `Retention`."""

    def of(rows):
        lines = [
            art.MetricsRow(
                seq=seq,
                attempt=1,
                step=step,
                split="val",
                recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
                metrics={key: value},
            ).to_line()
            for seq, (step, key, value) in enumerate(rows, 1)
        ]
        (tmp_path / "history.jsonl").write_bytes(b"".join(lines))
        return Retention(tmp_path / "history.jsonl", builtin_taxonomy())

    return of


@pytest.fixture
def keep(retention):
    """Which of the checkpoints of some steps stay, after rows of (step, key, value)."""

    def kept(rows, steps, metric):
        found = retention(rows)
        assert found.steps_to_keep(steps, metric) == found.steps_to_keep(steps, metric)
        return found.steps_to_keep(steps, metric)

    return kept


def rewards(*values):
    return [(step, "val/reward", value) for step, value in enumerate(values, 1)]


def test_the_best_and_the_newest_stay(keep):
    assert keep(rewards(0.1, 0.9, 0.5, 0.4), [1, 2, 3, 4], "val/reward") == {2, 4}


def test_one_that_is_both_stays_alone(keep):
    assert keep(rewards(0.1, 0.5, 0.9), [1, 2, 3], "val/reward") == {3}


def test_of_equals_the_later_stays(keep):
    assert keep(rewards(0.9, 0.9, 0.1), [1, 2, 3], "val/reward") == {2, 3}


def test_lower_is_better_where_the_spec_says_so(keep):
    rows = [(1, "loss/train", 0.3), (2, "loss/train", 0.1), (3, "loss/train", 0.2)]
    assert keep(rows, [1, 2, 3], "loss/train") == {2, 3}


def test_a_step_that_has_no_checkpoint_any_more_is_not_the_best(keep):
    assert keep(rewards(0.9, 0.2, 0.3, 0.1), [2, 3, 4], "val/reward") == {3, 4}


def test_a_step_that_was_repeated_counts_with_its_last_row(keep):
    rows = [*rewards(0.2, 0.9, 0.5), (2, "val/reward", 0.1)]
    assert keep(rows, [1, 2, 3], "val/reward") == {3}


def test_a_former_name_of_a_metric_finds_it_and_its_rows(keep):
    former, now = "train/reward", builtin_taxonomy().resolve("train/reward")
    assert former != now
    rows = [(1, former, 0.9), (2, now, 0.5), (3, now, 0.1)]
    assert keep(rows, [1, 2, 3], former) == keep(rows, [1, 2, 3], now) == {1, 3}


def test_without_a_value_at_any_checkpoint_all_stay(keep):
    assert keep([], [1, 2], "val/reward") == {1, 2}
    assert keep(rewards(0.5), [2, 3], "val/reward") == {2, 3}
    assert keep([(1, "loss/train", 0.5)], [1, 2], "val/reward") == {1, 2}
    assert keep(rewards(0.5), [], "val/reward") == set()


def test_a_metric_that_was_never_logged_is_told_with_the_nearest(keep):
    with pytest.raises(ConfigError, match=r"no metric 'val/rewards'.*mean 'val/reward'\?"):
        keep(rewards(0.5), [1], "val/rewards")


def test_a_log_that_grows_is_read_from_where_it_ended(tmp_path, monkeypatch):
    log = tmp_path / "history.jsonl"

    def line(step, value):
        at = datetime(2026, 1, 1, tzinfo=UTC)
        given = {"attempt": 1, "split": "val", "recorded_at": at, "metrics": {"val/reward": value}}
        return art.MetricsRow(seq=step, step=step, **given).to_line()

    log.write_bytes(line(1, 0.9) + line(2, 0.1))
    retention = Retention(log, builtin_taxonomy())
    assert retention.steps_to_keep([1, 2], "val/reward") == {1, 2}
    log.write_bytes(b"x" * log.stat().st_size + line(3, 0.95) + line(4, 0.5))
    assert retention.steps_to_keep([1, 2, 3, 4], "val/reward") == {3, 4}


def test_the_best_step_is_that_of_the_best_worse_end_of_its_interval(retention):
    rows = [
        *rewards(0.5, 0.7, 0.6),
        (2, "val/reward_std_err", 0.1),
        (3, "val/reward_std_err", 0.01),
    ]
    found = retention(rows)
    assert found.best_step([1, 2, 3], "val/reward") == 3  # 0.5, 0.504, 0.58
    assert found.best_step([1, 2], "val/reward") == 2
    assert found.best_step([1, 2, 3], "val/reward", at_least=0.58) == 3
    with pytest.raises(
        ConfigError, match=r"surely at least 0.6 by 'val/reward': .* step 3, 0.5804"
    ):
        found.best_step([1, 2, 3], "val/reward", at_least=0.6)
    with pytest.raises(ConfigError, match="no checkpoint has a value of 'val/reward'"):
        found.best_step([4], "val/reward")


def test_the_best_step_of_a_metric_of_which_lower_is_better(retention):
    rows = [(1, "loss/train", 0.3), (2, "loss/train", 0.1), (2, "loss/train_std_err", 0.2)]
    found = retention(rows)
    assert found.best_step([1, 2], "loss/train") == 1
    assert found.best_step([1, 2], "loss/train", at_least=0.3) == 1
    with pytest.raises(ConfigError, match="surely at most 0.2"):
        found.best_step([1, 2], "loss/train", at_least=0.2)
