from __future__ import annotations

import builtins

import pytest

ROWS = [{"reward/mean": n / 4, "costs/cum/all": float(n)} for n in range(5)]


@pytest.fixture
def two(shelf):
    shelf.run("a", *ROWS)
    shelf.run("b", *ROWS[::-1])


def test_a_figure_goes_into_a_file(two, art_command, tmp_path):
    out = tmp_path / "curve.png"
    assert art_command("plot", "a", "reward/mean", "--out", str(out)) == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_an_svg_names_its_lines_and_axes(two, art_command, tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    out = tmp_path / "curve.svg"
    art_command("plot", "a", "b", "train/reward", "--x", "costs/cum/all", "--out", str(out))
    drawing = out.read_text()
    for word in ("demo/a reward/mean", "demo/b reward/mean", ">costs/cum/all (USD)<"):
        assert word in drawing
    assert ">reward/mean<" in drawing


def test_an_axis_of_several_metrics_has_the_unit_that_all_have(shelf, art_command):
    shelf.run("c", *[{"costs/gpu": n, "costs/judge/m": n, "reward/mean": n} for n in range(5)])
    assert "USD" in art_command("plot", "c", "costs/gpu", "costs/judge/m")
    assert "USD" not in art_command("plot", "c", "costs/gpu", "reward/mean")


def test_without_a_file_it_is_drawn_in_the_terminal(two, art_command):
    printed = art_command("plot", "a", "b", "reward/mean", "costs/cum/all")
    assert "demo/b costs/cum/all" in printed
    assert "step" in printed
    assert "\x1b" not in printed


def test_a_file_without_an_ending_is_a_png_and_is_named_so(two, art_command, tmp_path):
    printed = art_command("plot", "a", "reward/mean", "--out", str(tmp_path / "curve"))
    assert printed == f"{tmp_path}/curve.png\n"
    assert (tmp_path / "curve.png").exists()


def test_a_metric_that_the_run_lacks_is_told_with_the_runs_name(two, art_error):
    assert "no metric 'reward/men'; demo/a has: costs/" in art_error("plot", "a", "reward/men")


def test_a_misspelt_section_is_neither_run_nor_metric(two, art_error):
    error = art_error("plot", "a", "rewrd/mean")
    assert "no run 'rewrd/mean'" in error
    assert "No metric either: their names begin with one of costs, data, " in error
    assert "No metric" not in art_error("plot", "c", "reward/mean")


def test_an_ending_that_cannot_be_written_is_an_error(two, art_error, tmp_path):
    assert "cannot write" in art_error("plot", "a", "reward/mean", "--out", str(tmp_path / "x.odd"))


@pytest.mark.parametrize("names", [["a"], ["reward/mean"]])
def test_runs_or_metrics_alone_are_nothing_to_plot(two, art_error, names):
    assert "Name at least one of each" in art_error("plot", *names)


@pytest.mark.parametrize(("library", "out"), [("matplotlib.figure", "x.png"), ("plotext", None)])
def test_without_the_library_the_error_says_what_to_install(
    two, art_error, monkeypatch, tmp_path, library, out
):
    real = builtins.__import__

    def missing(name, *rest):
        if name == library:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    where = ["--out", str(tmp_path / out)] if out else []
    error = art_error("plot", "a", "reward/mean", *where)
    assert "pip install 'art-core[plot]'" in error
