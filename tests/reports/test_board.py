from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from art_core.base.errors import ConfigError
from art_core.log.reader import LoggedRun
from art_core.log.summary import Entry, Summary
from art_core.metrics.taxonomy import builtin_taxonomy
from art_core.reports import board

TAXONOMY = builtin_taxonomy()


def place(name, best=None, **metrics):
    project, _, model = name.rpartition("/")
    path = Path("/runs") / (project or "p") / "models" / model
    entries = {
        key.replace("__", "/"): Entry(
            better=None if best is None else "higher",
            first=value,
            last=value,
            settled=best,
            settled_step=None if best is None else 3,
        )
        for key, value in metrics.items()
    }
    return board.place(
        LoggedRun(path), "finished", Summary(rows=2, step=3, highest_step=5, metrics=entries)
    )


def names(places):
    return [one.run.path.name for one in places]


def test_the_better_value_comes_first_whichever_that_is():
    places = [place(n, reward__mean=r, loss__train=r) for n, r in (("a", 1.0), ("b", 2.0))]
    assert names(board.best_first(places, "reward/mean", TAXONOMY)) == ["b", "a"]
    assert names(board.best_first(places, "loss/train", TAXONOMY)) == ["a", "b"]


def test_a_run_without_rows_has_no_step():
    one = board.place(LoggedRun(Path("/runs/p/models/new")), "finished", Summary())
    assert dict(one.values) == {"rows": 0, "attempts": 1}


def test_missing_and_nan_come_last_and_ties_stay_in_order():
    places = [
        place("missing"),
        place("nan", reward__mean=math.nan),
        place("b", reward__mean=0.5),
        place("a", reward__mean=0.5),
        place("top", reward__mean=0.75),
    ]
    assert names(board.best_first(places, "reward/mean", TAXONOMY)) == [
        "top", "b", "a", "missing", "nan",
    ]  # fmt: skip
    for place_ in places:
        place_.values.update({"loss/train": place_.values.pop("reward/mean", math.nan)})
    assert names(board.best_first(places, "loss/train", TAXONOMY))[-2:] == ["missing", "nan"]


def test_reward_per_dollar_needs_both():
    assert place("a", reward__mean=0.5, costs__cum__all=2.0).values["reward_per_dollar"] == 0.25
    assert "reward_per_dollar" not in place("a", reward__mean=0.5).values
    assert "reward_per_dollar" not in place("a", reward__mean=0.5, costs__cum__all=0.0).values


def test_a_column_is_found_under_its_former_name_and_its_parts():
    places = [place("a", best=0.9, reward__mean=0.5)]
    assert board.column("train/reward", places, TAXONOMY) == "reward/mean"
    assert board.column("train/reward.best", places, TAXONOMY) == "reward/mean.best"
    assert board.column("step", places, TAXONOMY) == "step"
    assert board.column("any", [], TAXONOMY) == "any"
    with pytest.raises(ConfigError, match=r"no column 'reward/men'.*Did you mean 'reward/mean'"):
        board.column("reward/men", places, TAXONOMY)


def test_wide_has_the_union_of_columns_at_full_precision_and_blanks():
    third = 1 / 3
    places = [place("a", reward__mean=third), place("b", best=2.5, own__x=2.0)]
    first, second = csv.DictReader(board.wide(places))
    assert list(first)[:8] == [
        "run", "project", "model", "status", "started", "ended", "path", "step",
    ]  # fmt: skip
    assert float(first["reward/mean"]) == third
    assert (first["own/x"], second["reward/mean"]) == ("", "")
    assert (second["own/x"], second["own/x.best"], second["own/x.best_step"]) == ("2.0", "2.5", "3")
    assert first["run"] == "p/a"


def test_wide_without_runs_is_a_line_without_columns():
    assert list(board.wide([])) == [""]


def test_long_is_a_line_a_run_and_key():
    lines = list(csv.DictReader(board.long([place("a", best=0.9, x__a=0.5), place("b", x__b=1.0)])))
    assert [(x["run"], x["key"], x["last"], x["best"], x["best_step"]) for x in lines] == [
        ("p/a", "x/a", "0.5", "0.9", "3"),
        ("p/b", "x/b", "1.0", "", ""),
    ]


def test_a_matrix_has_models_by_projects_and_the_better_of_two_with_one_name():
    places = [
        place("math/a", reward__mean=0.5),
        place("math/a", reward__mean=0.75),
        place("math/a"),
        place("chess/b", reward__mean=0.25),
        place("chess/c"),
    ]
    assert board.matrix(places, "reward/mean", TAXONOMY) == {
        "a": {"math": 0.75},
        "b": {"chess": 0.25},
        "c": {},
    }
