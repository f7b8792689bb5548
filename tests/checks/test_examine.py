from __future__ import annotations

import attrs
import pytest

import art_core as art
from art_core.checks.curves import RunCurves
from art_core.checks.examine import examine
from art_core.checks.rules import RULES
from art_core.testing.checks import CheckContract, CountedColumn, Reads
from art_core.testing.sick_runs import SyntheticRun, healthy_run, sick_run

FINDING = art.Finding(rule="r", onset=2, problem="p", metric="m", change="c")
CURVES = RunCurves((1, 2, 3), {}, usd={1: 0.5, 2: 0.25, 3: 0.25})


def rule(check, name="r"):
    return art.CheckSpec(name=name, check=check, summary="")


def test_a_finding_has_the_cost_since_its_onset():
    ended = attrs.evolve(FINDING, until=2)
    found = examine(CURVES, [rule(lambda _: [FINDING, ended])]).findings
    assert [finding.usd for finding in found] == [0.5, 0.25]
    (free,) = examine(RunCurves((), {}), [rule(lambda _: [FINDING])]).findings
    assert free.usd is None


def test_rules_that_raise_are_warnings_and_the_others_go_on():
    def broken(curves):
        yield FINDING
        raise RuntimeError("no column")

    rules = [rule(broken, "broken"), rule(lambda _: ["text"], "texts"), rule(lambda _: [FINDING])]
    examination = examine(CURVES, rules)
    assert [finding.rule for finding in examination.findings] == ["r"]
    assert tuple(examination.warnings.values()) == (
        "the rule 'broken' is left out: RuntimeError: no column",
        "the rule 'texts' is left out: TypeError: 'text' is not a Finding",
    )


def test_a_slow_rule_is_a_warning_and_its_findings_stay():
    times = iter([0.0, 3.0])
    examination = examine(CURVES, [rule(lambda _: [FINDING])], clock=lambda: next(times))
    assert len(examination.findings) == 1
    assert examination.warnings == {"r": "the rule 'r' took 3.0 s (limit 2 s)"}


def test_the_core_offers_its_rules_and_plugins_add_theirs():
    from art_core.hooks.host import Core

    plugins = art.Plugins(strict=True)
    plugins.register(Core(), "core")
    plugins.register(Offering([rule(lambda _: [], "mine")]), "mine")
    assert sorted(plugins.checks()) == sorted(["mine", *(spec.name for spec in RULES)])


def test_a_plugin_whose_rule_cannot_be_called_is_set_aside():
    plugins = art.Plugins()
    plugins.register(Offering([rule("no function")]), "odd")
    assert plugins.checks() == {}
    assert "not a spec with a name and a check" in str(plugins.problems["odd"])


@attrs.frozen
class Offering:
    specs: list

    @art.hookimpl
    def art_checks(self):
        return self.specs


LIMIT, STEPS, ONSET = 1e-6, 10, 30


def vanishing(curves):
    norms = curves.column("loss/grad_norm")
    small = [norm < LIMIT for norm in norms]
    if len(small) >= STEPS and all(small[-STEPS:]):
        first = len(small) - STEPS
        while first > 0 and small[first - 1]:
            first -= 1
        yield art.Finding(
            rule="vanishing-gradient",
            onset=curves.steps[first],
            problem=f"the gradient's norm is {norms[-1]:.1e}",
            metric="loss/grad_norm",
            change="Look at the loss and the advantages of a step.",
        )


def without_gradients(seed):
    rows = [
        attrs.evolve(row, metrics=row.metrics | {"loss/grad_norm": 0.0})
        if row.split == "train" and row.step >= ONSET
        else row
        for row in healthy_run(seed).rows
    ]
    return SyntheticRun(tuple(rows), "vanishing-gradient", ONSET)


class TestVanishing(CheckContract):
    sick = tuple(without_gradients(seed) for seed in range(3))
    healthy = 10

    @pytest.fixture
    def plugin(self):
        return Offering([rule(vanishing, "vanishing-gradient")])


class TestOneComponent(CheckContract):
    name = "one-component"
    sick = tuple(sick_run("one-component", seed) for seed in range(3))
    healthy = 10

    @pytest.fixture
    def plugin(self):
        return Offering(list(RULES))


class TestEntropy(CheckContract):
    name = "entropy-collapse"
    sick = tuple(sick_run("entropy-collapse", seed) for seed in range(3))
    healthy = 10

    @pytest.fixture
    def plugin(self):
        return Offering(list(RULES))


def test_a_counted_column_counts_what_is_read():
    reads = Reads()
    column = CountedColumn((1.0, 2.0, 3.0), reads)
    assert (column[0], column[1:], list(column), len(column)) == (1.0, (2.0, 3.0), [1, 2, 3], 3)
    assert reads.count == 6


FAULTS = {
    "finds nothing": (lambda curves: [], "test_it_finds_the_problem_of_sick_runs"),
    "always finds": (
        lambda curves: [attrs.evolve(FINDING, onset=1)],
        "test_it_is_silent_on_healthy_runs",
    ),
    "needs a row": (
        lambda curves: curves.steps[0] and [],
        "test_it_takes_any_log",
    ),
    "counts its calls": (
        lambda curves, seen=[]: seen.append(1) or [attrs.evolve(FINDING, onset=len(seen))],
        "test_the_same_curves_have_the_same_findings",
    ),
    "has another name": (
        lambda curves: [attrs.evolve(FINDING, rule="other")],
        "test_a_finding_is_complete",
    ),
    "compares all pairs": (
        lambda curves: (
            [0 for _ in curves.column("reward/mean") for _ in curves.column("reward/mean")] and []
        ),
        "test_it_reads_each_value_a_few_times",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_finds_faulty_rules(fault):
    check, test = FAULTS[fault]
    contract = TestVanishing()
    with pytest.raises((AssertionError, IndexError)):
        getattr(contract, test)(rule(check, "r"))


def test_the_contract_asks_for_sick_runs_and_for_a_name():
    class Empty(CheckContract):
        pass

    with pytest.raises(pytest.fail.Exception, match="give `sick`"):
        Empty().test_it_finds_the_problem_of_sick_runs(rule(vanishing))


def test_the_contract_of_one_of_several_rules_needs_its_name():
    plugin = Offering([rule(vanishing, "one"), rule(vanishing, "two")])
    with pytest.raises(pytest.fail.Exception, match="give the setting `name`"):
        TestVanishing()._tried(plugin)
