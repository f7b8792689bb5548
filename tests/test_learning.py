"""What the figures' script prints about what a run learned, with numbers to check by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import art_core as art
from art_core.log.reader import LoggedRun
from art_core.testing.echo import EchoBackend

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def learning():
    return runpy.run_path(str(DOCS / "learning.py"), run_name="learning")


def test_the_difference_of_two_quarters_has_an_interval_over_scenarios(learning):
    """Halves of the residuals are 1/8 for a and b, 1/16 for c and d. The variance of the difference
    is 4/3 * (2/64 + 2/256), and Student's t with 3 degrees of freedom is 3.182.
    """
    found = learning["compared"]([("a", 0.5), ("b", 0.0)], [("c", 0.75), ("d", 1.0)])
    assert (found.first, found.last) == (0.25, 0.875)
    reach = 3.182 * (4 / 3 * (2 / 64 + 2 / 256)) ** 0.5
    assert found.low == pytest.approx(0.625 - reach, rel=0.01)
    assert found.high == pytest.approx(0.625 + reach, rel=0.01)


def test_a_scenario_in_both_quarters_is_compared_with_itself(learning):
    """Both scenarios rise by 0.5: their residuals cancel, so the interval is the difference."""
    found = learning["compared"]([("a", 0.0), ("b", 0.5)], [("a", 0.5), ("b", 1.0)])
    assert found.low == found.high == 0.5


async def test_a_run_is_described_by_its_first_and_its_last_quarter(learning, tmp_path, capsys):
    backend = EchoBackend(gpu_cost_per_hour_usd=1.0)
    async with art.TrainableModel(
        name="m", project="p", base_model="echo", base_path=tmp_path, sinks=[]
    ) as model:
        await model.register(backend)
        assert learning["learned"](LoggedRun(model.run_dir)) is None
        for base in (0.0, 0.1, 0.5, 0.6):
            groups = [
                art.TrajectoryGroup(
                    [art.Trajectory(messages_and_choices=[], reward=base + n) for n in (0, 0.1)],
                    metadata={"scenario_id": name},
                )
                for name in ("a", "b")
            ]
            await model.train(groups)
    await backend.close()
    assert learning["main"]([str(model.run_dir)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("p/m, 4 steps, $0.0")
    assert "first quarter 0.050, last quarter 0.650: +0.600, 95 % interval 0.600 to 0.600" in out


@pytest.fixture
def figures():
    return runpy.run_path(str(DOCS / "figures.py"), run_name="figures")


def test_an_example_whose_packages_are_missing_is_left_out_with_a_line(figures, tmp_path, capsys):
    never = tmp_path / "never.py"
    figures["APART"]["guess"] = (figures["ROOT"] / "no" / "tsx", ("no program",), "npm install")
    assert figures["drawn"]("guess", never, short=False)
    assert capsys.readouterr().out == "guess: left out, no/tsx is missing: npm install\n"


@pytest.mark.parametrize(("short", "passes"), [(True, True), (False, False)])
def test_an_example_without_a_run_that_learned_fails_unless_it_is_short(
    figures, tmp_path, short, passes
):
    program = tmp_path / "nothing.py"
    program.write_text("import sys; assert '--figure' in sys.argv\n")
    assert figures["drawn"]("nothing", program, short=short) is passes
