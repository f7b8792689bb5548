"""The contract of derived metrics. Subclass `RollupContract`; give `plugin` and `examples`."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from art_core.hooks.host import Plugins
from art_core.metrics.taxonomy import SPLITS
from art_core.model.model import Model
from art_core.testing.statements import Contract, Setting

Metrics = Mapping[str, float]
Example = tuple[str, Metrics, Metrics, Metrics]
"""Split, a row's leaves, the run's totals, and the derived metrics, worked out by hand."""

LEAVES: Metrics = {
    "reward/mean": 0.5,
    "loss/train": -0.125,
    "costs/gpu": 0.25,
    "time/step_trainer_s": 4.0,
    "data/step_trainer_tokens": 1_000.0,
}
TOTALS: Metrics = {"costs/cum/all": 2.0, "costs/cum/gpu": 2.0, "time/cum/trainer_s": 16.0}
MAX_CALL_S = 1e-3


class RollupContract(Contract):
    """The tests of a derived metric. Fixture to give: `plugin`, the module or object with
    `art_rollup`.
    """

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting(
            "examples",
            "worked out by hand: split, leaves of a row, totals of the run, and the metrics that "
            "are derived from them; one of them derives something",
        ),
    )
    examples: ClassVar[Sequence[Example]] = ()

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def plugins(self, plugin: object) -> Plugins:
        """Return a host that holds only this plugin, and raises what is broken."""
        plugins = Plugins(strict=True)
        plugins.register(plugin, "contract")
        return plugins

    def inputs(self) -> list[tuple[str, Metrics, Metrics]]:
        """Return rows to try: the examples', and rows of every split: full, empty, of zeros."""
        zeros = (dict.fromkeys(LEAVES, 0.0), dict.fromkeys(TOTALS, 0.0))
        tried = [(LEAVES, TOTALS), (LEAVES, {}), ({}, {}), zeros]
        given = [(split, leaves, totals) for split, leaves, totals, _ in self.examples]
        return given + [(split, *pair) for split in SPLITS for pair in tried]

    def test_it_has_the_hook(self, plugins: Plugins) -> None:
        """`art_rollup`, as the core calls it."""
        assert plugins.derives

    def test_an_example_derives_something(self) -> None:
        """Else no value would be tested."""
        if not any(wanted for *_, wanted in self.examples):
            pytest.fail("no value is tested: give `examples`, one of which derives a metric")

    def test_it_derives_the_values_of_the_examples(self, plugins: Plugins) -> None:
        """These metrics, with these values, and no others."""
        for split, leaves, totals, wanted in self.examples:
            assert plugins.rollup(leaves, totals, split, ()) == pytest.approx(dict(wanted))

    def test_rows_of_every_kind_are_answered(self, plugins: Plugins) -> None:
        """Empty rows, rows of zeros, every split: nothing raises."""
        for split, leaves, totals in self.inputs():
            plugins.rollup(leaves, totals, split, ())

    def test_rows_are_left_as_they_are(self, plugins: Plugins) -> None:
        """Other plugins get the same leaves and totals."""
        for split, leaves, totals in self.inputs():
            given = dict(leaves), dict(totals)
            plugins.rollup(*given, split, ())
            assert given == (leaves, totals)

    def test_it_only_reads(self, plugins: Plugins) -> None:
        """The leaves and totals may be mappings that can't be written."""
        for split, leaves, totals in self.inputs():
            plugins.rollup(
                MappingProxyType(dict(leaves)), MappingProxyType(dict(totals)), split, ()
            )

    def test_the_same_row_has_the_same_answer(self, plugins: Plugins) -> None:
        """A row derived again, after other rows or in another process, is the same row."""
        rows = self.inputs()
        forth = [plugins.rollup(leaves, totals, split, ()) for split, leaves, totals in rows]
        back = [
            plugins.rollup(_reversed(leaves), _reversed(totals), split, ())
            for split, leaves, totals in reversed(rows)
        ]
        assert forth == back[::-1]

    def test_its_metrics_are_new(self, plugin: Any) -> None:
        """Measured metrics stay as they are."""
        for given, derived in self._answers(plugin):
            assert not derived.keys() & (given["leaves"].keys() | given["totals"].keys())

    def test_its_metrics_are_finite(self, plugin: Any) -> None:
        """Also for rows of zeros."""
        for given, derived in self._answers(plugin):
            for key, value in derived.items():
                assert math.isfinite(value), f"{key} is {value} for {dict(given['leaves'])}"

    def test_its_metrics_have_a_section(self, plugins: Plugins, plugin: Any) -> None:
        """One of the catalogue, or a new one that comes with `art_metrics`."""
        taxonomy = plugins.taxonomy()
        for given, derived in self._answers(plugin):
            for key in derived:
                assert taxonomy.place(key, given["split"])

    def test_its_metrics_are_neither_costs_nor_totals(self, plugin: Any) -> None:
        """`costs/` has the dollars that were paid, and `/cum/` what the core adds up."""
        for _, derived in self._answers(plugin):
            assert [key for key in derived if key.startswith("costs/") or "/cum/" in key] == []

    def test_it_takes_less_than_a_millisecond(self, plugins: Plugins) -> None:
        """The row waits for it. The fastest of 25 calls counts."""
        for split, leaves, totals, _ in self.examples:
            times = [_seconds(plugins, leaves, totals, split) for _ in range(25)]
            assert min(times) < MAX_CALL_S  # a busy machine makes some of them longer

    def test_its_metrics_are_in_the_rows_of_a_run(self, plugins: Plugins, tmp_path: Path) -> None:
        """They are derived from the row and from the run's totals after it."""
        for number, (split, leaves, _, _) in enumerate(self.examples):
            model = Model(
                name=f"run-{number}", project="p", base_path=tmp_path, sinks=[], plugins=plugins
            )
            row = model.run.record(split, 1, metrics=leaves)
            model.run.close()
            totals = {key: value for key, value in row.metrics.items() if "/cum/" in key}
            assert plugins.rollup(leaves, totals, split, leaves).keys() <= row.metrics.keys()

    def _answers(self, plugin: Any) -> Iterator[tuple[dict[str, Any], Metrics]]:
        """Yield the arguments and the plugin's own answer, before the core looks at it."""
        wanted = inspect.signature(plugin.art_rollup).parameters
        for split, leaves, totals in self.inputs():
            given = {"leaves": leaves, "totals": totals, "split": split}
            yield given, plugin.art_rollup(**{name: given[name] for name in wanted}) or {}


def _reversed(metrics: Metrics) -> Metrics:
    return dict(list(metrics.items())[::-1])


def _seconds(plugins: Plugins, leaves: Metrics, totals: Metrics, split: str) -> float:
    start = time.perf_counter()
    plugins.rollup(leaves, totals, split, ())
    return time.perf_counter() - start
