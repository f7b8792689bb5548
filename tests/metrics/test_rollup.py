import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.base.errors import MetricError
from art_core.metrics.rollup import Names, compile_plan, compute_row, totals_of
from art_core.metrics.taxonomy import builtin_taxonomy

taxonomy = builtin_taxonomy()


def rolled(leaves, totals=None):
    totals = totals or {}
    plan = compile_plan(Names("train", tuple(leaves)), totals, taxonomy)
    return compute_row(leaves, {**plan.totals, **totals}, plan)


def test_parents_are_sums_and_gpu_stands_directly_under_costs():
    metrics, _ = rolled(
        {"costs/train/judge/style": 0.25, "costs/train/judge/facts": 0.5, "costs/gpu": 1.0}
    )
    assert metrics["costs/train/judge"] == 0.75
    assert metrics["costs/train"] == 0.75
    assert metrics["costs/all"] == 1.75
    assert metrics["costs/cum/all"] == 1.75


def test_totals_run_on_and_every_row_carries_them_all():
    _, totals = rolled({"costs/train/judge": 0.5, "time/step_trainer_s": 2.0, "loss/train": 9.0})
    metrics, totals = rolled({"time/step_trainer_s": 3.0}, totals)
    assert metrics == {
        "time/step_trainer_s": 3.0,
        "time/cum/trainer_s": 5.0,
        "costs/cum/train/judge": 0.5,
        "costs/cum/train": 0.5,
        "costs/cum/all": 0.5,
    }
    assert totals_of(metrics) == totals


def test_throughput_is_derived_once_both_inputs_have_been_seen():
    metrics, totals = rolled({"data/step_trainer_tokens": 100.0})
    assert "throughput/avg_trainer_tok_per_s" not in metrics
    metrics, totals = rolled({"time/step_trainer_s": 4.0}, totals)
    assert metrics["throughput/avg_trainer_tok_per_s"] == 25.0
    metrics, _ = rolled({"data/step_actor_tokens": 60.0, "time/step_actor_s": 3.0}, totals)
    assert metrics["throughput/avg_actor_tok_per_s"] == 20.0


def test_idle_times_add_up_under_throughput():
    metrics, _ = rolled(
        {"throughput/step_trainer_idle_s": 2.0}, {"throughput/cum/trainer_idle_s": 1.0}
    )
    assert metrics["throughput/cum/trainer_idle_s"] == 3.0


def test_a_negative_cost_is_an_error():
    with pytest.raises(MetricError, match="negative"):
        rolled({"costs/train/judge": -0.1})


def test_a_leaf_and_a_parent_of_one_row_conflict():
    with pytest.raises(MetricError, match="sum of the costs below it"):
        rolled({"costs/train": 1.0, "costs/train/judge": 1.0})


def test_a_leaf_of_an_earlier_row_cannot_become_a_parent_nor_the_reverse():
    _, totals = rolled({"costs/train": 1.0})
    with pytest.raises(MetricError, match="logged as a leaf earlier"):
        rolled({"costs/train/judge": 1.0}, totals)
    _, totals = rolled({"costs/train/judge": 1.0})
    with pytest.raises(MetricError, match="sum of the costs below it"):
        rolled({"costs/train": 1.0}, totals)


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)
steps = st.lists(st.dictionaries(paths, st.floats(0, 1e6), max_size=6), min_size=1, max_size=6)


@given(steps)
def test_parents_are_the_sum_of_their_leaves_and_totals_the_sum_of_the_steps(history):
    totals: dict[str, float] = {}
    logged: list[dict[str, float]] = []
    for step in history:
        leaves = {f"costs/{path}": usd for path, usd in step.items()}
        try:
            metrics, totals = rolled(leaves, totals)
        except MetricError:
            continue
        logged.append(leaves)
        for parent in [key for key in metrics if key.startswith("costs/") and "/cum/" not in key]:
            below = [
                v for leaf, v in leaves.items() if leaf == parent or leaf.startswith(parent + "/")
            ]
            expected = math.fsum(leaves.values()) if parent == "costs/all" else math.fsum(below)
            assert math.isclose(metrics[parent], expected, rel_tol=1e-9, abs_tol=1e-9)
    spent = math.fsum(usd for leaves in logged for usd in leaves.values())
    assert math.isclose(totals.get("costs/cum/all", 0.0), spent, rel_tol=1e-9, abs_tol=1e-9)
