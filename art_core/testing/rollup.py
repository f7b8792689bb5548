"""What every derived metric does. Subclass `RollupContract` and give `plugin` and `examples`."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from art_core.metrics.taxonomy import SPLITS
from art_core.model import Model
from art_core.plugins.host import Plugins

Metrics = Mapping[str, float]
Example = tuple[str, Metrics, Metrics, Metrics]
"""Split, a row's leaves, the run's totals, and what is derived from them by hand."""

LEAVES: Metrics = {
    "reward/mean": 0.5,
    "loss/train": -0.125,
    "costs/gpu": 0.25,
    "time/step_trainer_s": 4.0,
    "data/step_trainer_tokens": 1_000.0,
}
TOTALS: Metrics = {"costs/cum/all": 2.0, "costs/cum/gpu": 2.0, "time/cum/trainer_s": 16.0}
LONGEST_CALL_S = 1e-3


class RollupContract:
    """Fixture to give: `plugin`, the module or object with `art_rollup`.

    `examples` are golden cases: (split, leaves, totals, what is derived), worked out by hand.
    """

    examples: ClassVar[Sequence[Example]] = ()

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def plugins(self, plugin: object) -> Plugins:
        """Return a host that holds this plugin alone, and raises what is broken."""
        plugins = Plugins(strict=True)
        plugins.register(plugin, "contract")
        return plugins

    def inputs(self) -> list[tuple[str, Metrics, Metrics]]:
        """Return rows to try: the examples', and rows of every split: full, empty, of zeros."""
        zeros = (dict.fromkeys(LEAVES, 0.0), dict.fromkeys(TOTALS, 0.0))
        tried = [(LEAVES, TOTALS), (LEAVES, {}), ({}, {}), zeros]
        given = [(split, leaves, totals) for split, leaves, totals, _ in self.examples]
        return given + [(split, *pair) for split in SPLITS for pair in tried]

    def test_it_has_the_hook_and_an_example_to_prove_it(self, plugins: Plugins) -> None:
        """The hook is spelt as the core spells it, and `examples` is given."""
        assert plugins.derives
        assert self.examples

    def test_it_derives_what_the_examples_say(self, plugins: Plugins) -> None:
        """These metrics, with these values, and no others."""
        for split, leaves, totals, wanted in self.examples:
            assert plugins.rollup(leaves, totals, split, ()) == pytest.approx(dict(wanted))

    def test_rows_of_every_kind_are_answered_and_left_as_they_are(self, plugins: Plugins) -> None:
        """Empty rows, rows of zeros, every split: nothing raises, and no input is changed."""
        for split, leaves, totals in self.inputs():
            given = dict(leaves), dict(totals)
            plugins.rollup(*given, split, ())
            assert given == (leaves, totals)

    def test_it_only_reads(self, plugins: Plugins) -> None:
        """Other plugins see the same input: it may be one that can't be written."""
        for split, leaves, totals in self.inputs():
            plugins.rollup(
                MappingProxyType(dict(leaves)), MappingProxyType(dict(totals)), split, ()
            )

    def test_the_same_row_has_the_same_answer(self, plugins: Plugins) -> None:
        """A row derived again, in a resumed run or another process, is the same row."""
        for split, leaves, totals in self.inputs():
            first, second = (plugins.rollup(leaves, totals, split, ()) for _ in range(2))
            assert first == second

    def test_its_metrics_are_new_finite_and_have_a_section(
        self, plugins: Plugins, plugin: Any
    ) -> None:
        """What the core or the user measured stays; a section of its own comes with
        `art_metrics`.
        """
        taxonomy = plugins.taxonomy()
        for split, leaves, totals in self.inputs():
            given = {"leaves": leaves, "totals": totals, "split": split}
            derived = _answer(plugin, given)
            assert not derived.keys() & (leaves.keys() | totals.keys())
            for key, value in derived.items():
                assert taxonomy.place(key, split)
                assert math.isfinite(value), f"{key} is {value} for {dict(leaves)}"

    def test_it_takes_less_than_a_millisecond(self, plugins: Plugins) -> None:
        """It stands between the step and its row."""
        for split, leaves, totals, _ in self.examples:
            times = [_seconds(plugins, leaves, totals, split) for _ in range(25)]
            assert min(times) < LONGEST_CALL_S  # a busy machine makes some of them longer

    def test_its_metrics_stand_in_the_rows(self, plugins: Plugins, tmp_path: Path) -> None:
        """What is derived of a row and of the run's totals after it is written beside them."""
        for number, (split, leaves, _, _) in enumerate(self.examples):
            model = Model(
                name=f"run-{number}", project="p", base_path=tmp_path, sinks=[], plugins=plugins
            )
            row = model.run.record(split, 1, metrics=leaves)
            model.run.close()
            totals = {key: value for key, value in row.metrics.items() if "/cum/" in key}
            assert plugins.rollup(leaves, totals, split, leaves).keys() <= row.metrics.keys()


def _answer(plugin: Any, given: Mapping[str, Any]) -> Metrics:
    wanted = inspect.signature(plugin.art_rollup).parameters
    answer: Metrics | None = plugin.art_rollup(**{name: given[name] for name in wanted})
    return answer or {}


def _seconds(plugins: Plugins, leaves: Metrics, totals: Metrics, split: str) -> float:
    start = time.perf_counter()
    plugins.rollup(leaves, totals, split, ())
    return time.perf_counter() - start
