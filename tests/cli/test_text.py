from __future__ import annotations

from art_core.cli.text import branches, counted, signed_percent


def test_one_is_singular_and_thousands_have_commas():
    assert [counted(n, "run") for n in (0, 1, 2, 12345)] == [
        "0 runs",
        "1 run",
        "2 runs",
        "12,345 runs",
    ]


def test_a_change_that_rounds_to_nothing_has_no_sign():
    assert [signed_percent(x) for x in (1e-9, -1e-9, 0.5, -0.25)] == [
        "0.0%",
        "0.0%",
        "+50.0%",
        "-25.0%",
    ]


def test_the_dearest_branch_comes_first_with_what_is_below_it():
    costs = {"a": 1.0, "b": 2.0, "b/x": 0.5, "b/y": 1.5, "a/z": 1.0, "gone/child": 9.0, "": 3.0}
    assert list(branches(costs)) == [
        ("b", "├─ "), ("b/y", "│  ├─ "), ("b/x", "│  └─ "), ("a", "└─ "), ("a/z", "   └─ "),
    ]  # fmt: skip


def test_a_tree_may_be_deep():
    path = "a" + "/a" * 1500
    costs = {path[: 2 * n + 1]: 1.0 for n in range(1501)}
    assert [path for path, _ in branches(costs)] == list(costs)
