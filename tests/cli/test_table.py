from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import art_core as art
from art_core.cli.table import _width, table_lines

COLUMNS = (
    art.Column(key="name"),
    art.Column(key="cost/all.best", form=".2f", right=True),
    art.Column(key="count", right=True, rank=2),
    art.Column(key="about", wrap=True, rank=1),
)
ROWS = [
    {"name": "demo/an-agent-with-a-long-name", "cost/all.best": 1.5, "count": 1234567},
    {"name": "b", "cost/all.best": None, "count": 2, "about": "what it is, " * 4},
]


def lines(width, columns=COLUMNS, rows=ROWS, **more):
    return list(table_lines(art.Table(name="t", rows=rows, columns=columns, **more), width))


def test_what_fits_is_a_line_per_row():
    assert lines(200) == [
        "name                            cost/all.best    count  about",
        "demo/an-agent-with-a-long-name           1.50  1234567  -",
        "b                                           -        2  " + ROWS[1]["about"].rstrip(),
    ]


def test_prose_is_wrapped_first():
    assert lines(84) == [
        "name                            cost/all.best    count  about",
        "demo/an-agent-with-a-long-name           1.50  1234567  -",
        "b                                           -        2  what it is, what it is, what",
        "                                                        it is, what it is,",
    ]


def test_then_headings_then_names():
    assert lines(62)[:3] == [
        "name                  cost/    count  about",
        "                        all",
        "                      .best",
    ]
    assert lines(62)[3] == "demo/an-ag…long-name   1.50  1234567  -"


def test_then_columns_are_left_out_and_named():
    assert lines(30)[-3:] == [
        "demo/an-age…a-long-name   1.50",
        "b                            -",
        "(left out: count, about; a wider terminal shows them, and --json)",
    ]


def test_columns_of_rank_nought_stay_however_narrow_it_is():
    assert lines(5)[3] == "demo/an-…ng-name   1.50"


def test_cells_of_a_whole_column_are_not_shortened():
    columns = (art.Column(key="name", whole=True), *COLUMNS[1:])
    assert lines(40, columns=columns)[-3].split() == [ROWS[0]["name"], "1.50"]


def test_without_rows_there_is_the_text_for_that():
    assert lines(80, rows=[], empty="none") == ["none"]
    assert lines(80, rows=[]) == []


def test_a_cell_stays_one_line_and_sends_nothing_to_the_terminal():
    rows = [{"name": "a\nb\x1b[31m", "cost/all.best": 1}]
    assert lines(80, rows=rows, columns=COLUMNS[:2])[1].split() == ["a", "b", "[31m", "1.00"]


def test_wide_letters_take_two_cells():
    rows = [{"name": "実験", "cost/all.best": 1}, {"name": "abcd", "cost/all.best": 1}]
    first, second = lines(80, rows=rows, columns=COLUMNS[:2])[1:]
    assert first.index("1.00") + 2 == second.index("1.00")


def test_a_name_of_wide_letters_is_shortened_to_the_cells_it_has():
    rows = [{"name": "実験" * 9, "cost/all.best": 1}]
    (*_, line) = lines(5, rows=rows, columns=COLUMNS[:2])
    assert line == "実験実験…験実験    1.00"


@given(
    st.lists(st.text("ab実/ -", min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(40, 90),
)
def test_no_line_is_wider_than_the_terminal(names, width):
    rows = [{"name": name, "cost/all.best": 1, "count": 1, "about": name} for name in names]
    *body, last = lines(width, rows=rows)
    assert all(_width(line) <= width for line in body)
    assert last.startswith("(left out") or _width(last) <= width


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("call", [("costs", "a"), ("leaderboard",), ("runs",), ("show", "a")])
def test_reports_fit_the_terminal(shelf, art_command, monkeypatch, call, width):
    receipt = (
        b',"_receipts":[{"leaf":"costs/train/judge/correctness","item":"gpt-5-2026-01-31","calls":'
        b'123456,"input_tokens":123456789,"output_tokens":12345678,"provider":"openai","usd":0.5,'
        b'"tier":"priority","rates":{"input_per_million":1.25,"output_per_million":10.0,'
        b'"cache_read_per_million":0.125,"source":"genai-prices 0.2.1, 2026-01-31"}}]}'
    )
    row = {"reward/mean": 0.5, "costs/all": 0.5, "costs/cum/all": 1234.5, "costs/cum/train": 1.0}
    log = shelf.run("a", row) / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"}\n", receipt + b"\n"))
    art_command("runs")
    monkeypatch.setenv("COLUMNS", str(width))
    printed = art_command(*call).splitlines()
    texts = ("(left out", "one point", "reward did not", "demo/a  finished")
    assert max(len(line) for line in printed if not line.startswith(texts)) <= width
    assert "1234" in "".join(printed)
