from __future__ import annotations

import pytest

import art_core as art

ROW = {"reward/mean": 0.5, "costs/gpu": 2.0, "costs/all": 2.0, "costs/cum/all": 2.0}
GPU = b',"_receipts":[{"leaf":"costs/gpu","item":"card","device_seconds":3600,"usd":2.0}]}'


@pytest.fixture
def run(shelf):
    directory = shelf.run("a", ROW)
    log = directory / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"}\n", GPU + b"\n"))
    return directory


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("x.csv", [], "seq,attempt,step,split"),
        ("x.txt", [], "seq,attempt,step,split"),
        ("x.jsonl", [], '{"schema":1'),
        ("x.csv", ["--format", "jsonl"], '{"schema":1'),
    ],
)
def test_the_ending_says_the_format_unless_told(run, art_command, tmp_path, name, options, first):
    out = tmp_path / name
    assert art_command("export", "a", "--out", str(out), *options) == f"1 row of demo/a in {out}\n"
    assert out.read_text().startswith(first)


def test_a_log_is_not_written_over_by_what_is_exported_from_it(run, art_error):
    log = run / "history.jsonl"
    before = log.read_bytes()
    assert "is the run's own log" in art_error("export", "a", "--format", "csv", "--out", str(log))
    assert log.read_bytes() == before


def cells(printed):
    return [line.split() for line in printed.splitlines()]


def test_repricing_tells_old_and_new_by_leaf_and_in_all(run, art_command, tmp_path):
    file = tmp_path / "prices.json"
    file.write_text('{"devices": {"card": 3}}')
    printed = art_command("reprice", "a", "--prices", str(file))
    assert cells(printed) == [
        ["cost", "booked", "$", "repriced", "$", "change"],
        ["costs/gpu", "2.000000", "3.000000", "+50.0%"],
        ["all", "2.000000", "3.000000", "+50.0%"],
        ["by", "row:", str(run / "repriced.csv")],
    ]
    other = art_command("reprice", "a", "--prices", str(file), "--gpu-usd-per-hour", "9")
    assert cells(other)[1][2] == "3.000000"
    assert cells(art_command("reprice", "a", "--gpu-usd-per-hour", "9"))[1][2] == "9.000000"


def test_repricing_asks_the_installed_books(run, art_command):
    class Book:
        @art.hookimpl
        def art_gpu_rate(self, device):
            return 1.0

    assert cells(art_command("reprice", "a", plugins={"book": Book()}))[1][2] == "1.000000"


def test_a_run_that_cost_nothing_and_a_cost_that_is_new(shelf, art_command):
    shelf.run("free", {"reward/mean": 0.5})
    assert cells(art_command("reprice", "free"))[1] == ["all", "0.000000", "0.000000", "-"]
    directory = shelf.run("new", {"reward/mean": 0.5})
    log = directory / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"}\n", GPU.replace(b',"usd":2.0', b"") + b"\n"))
    assert cells(art_command("reprice", "new", "--gpu-usd-per-hour", "4"))[1] == [
        "costs/gpu", "0.000000", "4.000000", "new",
    ]  # fmt: skip


def test_what_still_has_no_price_is_named(shelf, art_command, tmp_path):
    log = shelf.run("b", ROW) / "history.jsonl"
    call = b'{"leaf":"costs/train/judge","provider":"acme","item":"%b","calls":1,"input_tokens":9}'
    calls = b",".join(call % name for name in (b"one", b"two"))
    log.write_bytes(log.read_bytes().replace(b"}\n", b',"_receipts":[' + calls + b"]}\n"))
    assert "in no sum: acme/one, acme/two; give --prices FILE\n" in art_command("reprice", "b")
    file = tmp_path / "prices.json"
    price = '{"prompt_per_million": 1, "completion_per_million": 1}'
    file.write_text(f'{{"models": {{"acme/two": {price}}}}}')
    assert "in no sum: acme/one; give" in art_command("reprice", "b", "--prices", str(file))
    file.write_text(f'{{"models": {{"one": {price}, "two": {price}}}}}')
    assert "in no sum" not in art_command("reprice", "b", "--prices", str(file))


def test_prices_that_fit_nothing_the_run_bought_are_named(run, art_command, tmp_path):
    file = tmp_path / "prices.json"
    file.write_text('{"devices": {"Card": 3, "cards": 4}}')
    printed = art_command("reprice", "a", "--prices", str(file))
    assert "prices that fit nothing here: cards; the run bought: card\n" in printed
    assert cells(printed)[1] == ["costs/gpu", "2.000000", "3.000000", "+50.0%"]


def test_a_run_without_receipts_bought_nothing(shelf, art_command, tmp_path):
    shelf.run("bare", {"reward/mean": 0.5})
    file = tmp_path / "prices.json"
    file.write_text('{"devices": {"card": 3}}')
    printed = art_command("reprice", "bare", "--prices", str(file))
    assert "fit nothing here: card; the run bought: nothing with a receipt\n" in printed


def test_a_price_file_that_is_no_object_is_told(run, art_error, tmp_path):
    (tmp_path / "prices.json").write_text("[1]")
    error = art_error("reprice", "a", "--prices", str(tmp_path / "prices.json"))
    assert "prices.json is no price file: an object is needed, this is a list. Such as" in error


@pytest.mark.parametrize("price", ["-1", "nan"])
def test_a_price_below_nothing_is_refused(run, art_error, price):
    error = art_error("reprice", "a", "--gpu-usd-per-hour", price)
    assert "must be a price of at least 0" in error


def test_a_change_that_rounds_to_nothing_has_no_sign(run, art_command):
    change = art_command("reprice", "a", "--gpu-usd-per-hour", "1.9999999")
    assert cells(change)[1] == ["costs/gpu", "2.000000", "2.000000", "0.0%"]
