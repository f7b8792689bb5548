"""The contract of rules of `art doctor`. Subclass `CheckContract`; give `plugin` and `sick`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import attrs
import pytest

from art_core.checks.curves import RunCurves
from art_core.checks.finding import CheckSpec, Finding
from art_core.hooks.host import Plugins
from art_core.testing.sick_runs import SyntheticRun, healthy_run
from art_core.testing.statements import Contract, Setting

HEALTHY = 50
READS_PER_STEP = 400


@attrs.define
class Reads:
    """How many values were read from columns."""

    count: int = 0


class CountedColumn(Sequence[float]):
    """A column that counts the values that are read from it."""

    def __init__(self, values: Sequence[float], reads: Reads) -> None:
        self._values, self._reads = values, reads

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, place: Any) -> Any:
        found = self._values[place]
        self._reads.count += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self) -> Iterator[float]:
        for value in self._values:
            self._reads.count += 1
            yield value


class CheckContract(Contract):
    """The tests of a rule. Fixture to give: `plugin`, the module or object with `art_checks`."""

    settings: ClassVar[tuple[Setting, ...]] = (
        Setting("name", "which rule is tried, if the plugin offers several"),
        Setting(
            "sick", "runs in which the rule has to find its problem, and the step of its onset"
        ),
        Setting("within", "by how many steps after the onset it is found (25)"),
        Setting("healthy", "how many healthy runs are tried (50)"),
    )
    name: ClassVar[str] = ""
    sick: ClassVar[Sequence[SyntheticRun]] = ()
    within: ClassVar[int] = 25
    healthy: ClassVar[int] = HEALTHY

    @pytest.fixture
    def plugin(self) -> object:
        """Return the plugin's module, or an object with its hooks."""
        raise AssertionError("give the fixture plugin")

    @pytest.fixture
    def rule(self, plugin: object) -> CheckSpec:
        """Return the rule that is tried."""
        return self._tried(plugin)

    def _tried(self, plugin: object) -> CheckSpec:
        plugins = Plugins(strict=True)
        plugins.register(plugin, "contract")
        offered = plugins.checks()
        if self.name in offered:
            return offered[self.name]
        if self.name or len(offered) != 1:
            pytest.fail(f"give the setting `name`; the plugin offers: {', '.join(offered)}")
        return next(iter(offered.values()))

    def test_it_finds_the_problem_of_sick_runs(self, rule: CheckSpec) -> None:
        """Soon after the onset, and never before it. A sick run is needed."""
        if not self.sick:
            pytest.fail("no problem is tested: give `sick`")
        for run in self.sick:
            assert run.onset is not None
            assert _found(rule, run.curves(run.onset + self.within)), f"onset {run.onset}"
            assert not _found(rule, run.curves(run.onset - 1)), f"found before {run.onset}"

    def test_it_is_silent_on_healthy_runs(self, rule: CheckSpec) -> None:
        """They learn until their end."""
        for seed in range(self.healthy):
            assert not _found(rule, healthy_run(seed).curves()), f"healthy_run({seed})"

    def test_a_finding_is_complete(self, rule: CheckSpec) -> None:
        """It has the rule's name, an onset among the steps, finite numbers and all texts."""
        for run in self.sick:
            curves = run.curves()
            for finding in _found(rule, curves):
                assert finding.rule == rule.name
                assert finding.onset in curves.steps
                assert finding.problem and finding.change and finding.metric
                assert all(map(math.isfinite, finding.numbers.values())), finding.numbers

    def test_the_same_curves_have_the_same_findings(self, rule: CheckSpec) -> None:
        """After other curves, too; and the curves stay as they are."""
        runs = [run.curves() for run in (*self.sick, healthy_run(1))]
        before = deepcopy([(run.steps, dict(run.columns)) for run in runs])
        first = [_found(rule, run) for run in runs]
        assert [_found(rule, run) for run in runs[::-1]] == first[::-1]
        assert repr([(run.steps, dict(run.columns)) for run in runs]) == repr(before)

    def test_it_takes_any_log(self, rule: CheckSpec) -> None:
        """Without rows, with one row, without its metrics, with gaps, cut off anywhere."""
        run = (*self.sick, healthy_run(2))[0]
        whole = run.curves()
        _found(rule, RunCurves((), {}))
        _found(rule, RunCurves(whole.steps, {}))
        _found(rule, _with_gaps(whole, lambda _: True))
        _found(rule, _with_gaps(whole, lambda place: place % 3 == 0))
        for until in range(1, 40):
            _found(rule, run.curves(until))

    def test_it_reads_each_value_a_few_times(self, rule: CheckSpec) -> None:
        """At most 400 reads per step, however long the run is: counted, not timed."""
        curves, reads = healthy_run(3).curves(), Reads()
        times = 10
        steps = tuple(range(len(curves.steps) * times))
        columns = {
            key: CountedColumn(tuple(values) * times, reads)
            for key, values in curves.columns.items()
        }
        _found(rule, RunCurves(steps, columns))
        assert reads.count <= READS_PER_STEP * len(steps)


def _found(rule: CheckSpec, curves: RunCurves) -> list[Finding]:
    return list(rule.check(curves))


def _with_gaps(curves: RunCurves, is_gap: Any) -> RunCurves:
    columns = {
        key: tuple(math.nan if is_gap(place) else value for place, value in enumerate(values))
        for key, values in curves.columns.items()
    }
    return attrs.evolve(curves, columns=columns)
