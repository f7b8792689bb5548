import json
import threading
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import orjson
import pytest

import art_core as art
from art_core.cli import price_check, prices
from art_core.metrics.receipt import TokenRates
from art_core.prices import book, tables
from art_core.prices.tables import listed_models

LIST = [
    {"tinker_id": "Qwen/Qwen3-8B", "prefill": "$0.25", "sample": "$0.75", "train": "$0.50"},
    {"tinker_id": "Qwen/Qwen3.5-4B", "prefill": 0.33, "sample": 1.005, "train": 0.737},
    {"tinker_id": "new/model", "prefill": 1, "sample": 2},
]
PROVIDER = {"id": "acme", "name": "Acme", "api_pattern": "https://api.acme.com"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prices, "_today", lambda: date(2026, 12, 1))
    listed_models.cache_clear()
    book._saved.cache_clear()
    yield
    monkeypatch.undo()
    listed_models.cache_clear()
    book._saved.cache_clear()


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "models.json"
    file.write_text(json.dumps(LIST))
    return str(file)


def rows(printed):
    return [" ".join(line.split()) for line in printed.splitlines()]


def test_prices_are_listed_with_their_date_and_old_ones_marked(art_command):
    printed = rows(art_command("prices"))
    tinkers = "tinker https://tinker-docs.thinkingmachines.ai/tinker/models/"
    assert f"Qwen/Qwen3-8B 0.195 0.039 0.6 0.44 2026-10-07 {tinkers}" in printed
    old = "Qwen/Qwen3-32B 0.49 - 1.47 1.47 2026-06-12 (old) tinker"
    assert any(line.startswith(old) for line in printed)
    assert any(line.endswith("days old: art prices update") for line in printed)
    assert "H100 NVL 3.19 2026-11-09 RunPod Secure Cloud, https://www.runpod.io/pricing" in printed
    assert printed[-1] == "art prices list NAME lists API models, too, such as gpt-5"
    assert art_command("prices", "list") == art_command("prices")


def test_an_update_prints_what_has_changed_and_is_listed_from_then_on(
    art_command, source, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "400")  # the path of the source may be long
    printed = rows(art_command("prices", "update", source))
    was = "0.195 / 0.039 / 0.6 / 0.44 (2026-10-07)"
    assert printed[1] == f"Qwen/Qwen3-8B 0.25 0.05 0.75 0.5 2026-12-01 tinker {source} {was}"
    assert printed[2] == f"new/model 1 0.2 2 - 2026-12-01 tinker {source} new"
    assert printed[-1] == f"3 prices kept in {tmp_path / 'cache' / 'training_prices.json'}"
    assert any(line.startswith("new/model 1 0.2 2 -") for line in rows(art_command("prices")))
    again = art_command("prices", "update", source, "--provider", "tinker")
    assert "no price has changed" in again
    assert "new/model 1 - 2" in " ".join(
        rows(art_command("prices", "update", source, "--provider", "acme"))
    )


def test_a_list_without_old_prices_says_nothing_more(art_command, source, monkeypatch):
    monkeypatch.setattr(prices, "_today", lambda: date(2026, 6, 1))
    assert "days old" not in art_command("prices", "list", "tinker")


def test_a_name_chooses_hosted_and_api_models_and_devices(art_command):
    printed = rows(art_command("prices", "list", "openai/gpt-4.1-mini", "qwen3.5-4b", "h100 nvl"))
    assert [line.split(" 20")[0] for line in printed if " 20" in line] == [
        "Qwen/Qwen3.5-4B 0.33 0.066 1.005 0.737",
        "openai/gpt-4.1-mini 0.4 0.1 1.6",
        "openrouter/openai/gpt-4.1-mini 0.4 0.1 1.6",
        "openrouter/openai/gpt-4.1-mini:batch 0.2 0.05 0.8",
        "H100 NVL 3.19",
    ]
    assert "no price is known for zonk" in art_command("prices", "list", "zonk")


def test_all_api_models_are_listed_on_request_with_the_age_of_the_list(art_command):
    found = json.loads(art_command("prices", "list", "--all", "--json"))
    models = {(row["provider"], row["model"]): row for row in found["api_models"]}
    assert len(models) > 1000
    row = models["anthropic", "claude-haiku-4-5"]
    assert (row["input"], row["cached"], row["output"]) == (1.0, 0.1, 5.0)
    assert row["as_of"] == book.api_prices().day()
    assert row["source"].startswith("genai-prices ")


def test_without_the_price_book_only_the_other_prices_are_listed(art_command, monkeypatch):
    monkeypatch.setattr(book, "_library", lambda: None)
    assert "H100 NVL" in art_command("prices", "list", "h100 nvl")


def api_list(**dollars):
    models = [
        {"id": name, "match": {"equals": name}, "prices": {"input_mtok": usd, "output_mtok": 2}}
        for name, usd in dollars.items()
    ]
    return [PROVIDER | {"models": models}]


def test_a_list_of_api_models_is_known_by_its_form(art_command, tmp_path):
    file = tmp_path / "data.json"
    file.write_text(json.dumps(api_list(one=1)))
    printed = rows(art_command("prices", "update", str(file)))
    assert printed[1] == "acme/one 1 - 2 2026-12-01 genai-prices 2026-12-01 new"
    kept = tmp_path / "cache" / "api_prices.json"
    assert printed[-1] == f"1 price of API models kept in {kept}"
    file.write_text(json.dumps(api_list(one=1.5, two=1)))
    printed = rows(art_command("prices", "update", str(file)))
    assert printed[1].endswith("genai-prices 2026-12-01 1 / - / 2")
    assert printed[2].endswith("new")
    again = art_command("prices", "update", str(file))
    assert "no price of an API model has changed" in again


@pytest.fixture
def web(monkeypatch):
    """Serve both lists, or what a test puts in their place."""
    bodies = {"/tinker.json": LIST, "/api.json": api_list(one=1)}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies.get(self.path)
            self.send_response(200 if body else 503)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        table = tables.read_table("training") | {"url": f"{address}/tinker.json"}
        monkeypatch.setattr(prices, "read_table", lambda _: table)
        updater = book._library().UpdatePrices
        monkeypatch.setattr(
            book._library(), "UpdatePrices", lambda: updater(url=f"{address}/api.json")
        )
        try:
            yield bodies
        finally:
            server.shutdown()
            thread.join()


def test_an_update_without_a_source_reads_both_lists(art_command, web):
    found = json.loads(art_command("prices", "update", "--json"))
    assert [row["model"] for row in found["changed"]] == ["Qwen/Qwen3-8B", "new/model"]
    assert [row["model"] for row in found["changed_api_models"]] == ["one"]
    assert (found["models"], found["api_count"]) == (3, 1)


@pytest.mark.parametrize(
    ("gone", "left"), [("/tinker.json", "acme/one"), ("/api.json", "new/model")]
)
def test_a_list_that_can_t_be_fetched_is_an_error_and_the_other_one_is_kept(
    web, art_status, gone, left
):
    web[gone] = None
    status, printed, error = art_status("prices", "update")
    assert (status, left in printed) == (2, True)
    assert "cannot read a price list from http://127.0.0.1" in error
    assert f"{gone}: HTTP Error 503" in error
    assert "A list that was fetched elsewhere is read by `art prices update FILE`" in error


class Market:
    """A price book whose prices have gone up since a run was booked."""

    @art.hookimpl
    def art_token_rates(self, provider, model, usage):
        dollars = {
            "dearer": (2.0, "2026-11-30"),
            "same": (1.0, "2026-11-30"),
            "dusty": (1.0, "2026-09-01"),
        }
        if model not in dollars:
            return None
        usd, as_of = dollars[model]
        return TokenRates(input_per_million=usd, output_per_million=0, source="market", as_of=as_of)

    @art.hookimpl
    def art_gpu_rate(self, device):
        return {"H100 NVL": 3.19, "odd card": 1.0}.get(device)


def bought(item, usd=1.0, **others):
    """A million tokens for a dollar."""
    rates = {"input_per_million": 1.0, "output_per_million": 0.0, "source": "market"}
    call = {"leaf": f"costs/train/{item}", "item": item, "provider": "p", "input_tokens": 1_000_000}
    return call | {"usd": usd, "rates": rates} | others


@pytest.fixture
def booked(shelf, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 12, 1, tzinfo=UTC)

    monkeypatch.setattr(price_check, "datetime", Clock)

    def book_run(name, *receipts):
        log = shelf.run(name, {"reward/mean": 1.0}) / "history.jsonl"
        log.write_bytes(
            orjson.dumps(orjson.loads(log.read_bytes()) | {"_receipts": receipts}) + b"\n"
        )

    return book_run


@pytest.fixture
def checked(art_status):
    def check(*arguments, status):
        plugins = {"market": Market()}
        found, printed, _ = art_status("prices", "check", *arguments, "--json", plugins=plugins)
        assert found == status
        return json.loads(printed)

    return check


def test_a_run_whose_prices_have_changed_is_outdated(booked, checked):
    booked("a", bought("same"), bought("dearer"), bought("dusty"), bought("nameless", None))
    found = checked("a", status=1)
    rows = {row["item"]: row for row in found["prices"]}
    assert {name: row["finding"] for name, row in rows.items()} == {
        "p/same": "ok", "p/dearer": "changed", "p/dusty": "old", "p/nameless": "unpriced",
    }  # fmt: skip
    dearer = rows["p/dearer"]
    assert (dearer["booked_usd"], dearer["now_usd"], dearer["change"]) == (1.0, 2.0, 1.0)
    assert dearer["rates"] == {"input_per_million": {"booked": 1.0, "now": 2.0}}
    assert rows["p/dusty"]["as_of"] == "2026-09-01"
    assert (found["booked_usd"], found["now_usd"], found["outdated"]) == (3.0, 4.0, 3)


def test_the_check_is_printed_for_people(booked, art_status, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    booked("a", bought("same"), bought("dearer"), bought("dusty"), bought("nameless", None))
    printed = rows(art_status("prices", "check", "a", plugins={"market": Market()})[1])
    changed = (
        "demo/a p/dearer train/dearer 1.000000 2.000000 +100.0% input 1 to 2 2026-11-30 changed"
    )
    assert changed in printed
    assert printed[-4:] == [
        "booked $3.000000, at the newest prices $4.000000",
        "1 price changed: art reprice RUN computes the rows anew",
        "1 price of more than 60 days: art prices update",
        "1 purchase without a price: art reprice RUN --prices FILE",
    ]


def test_the_number_of_days_is_a_choice(booked, checked):
    booked("a", bought("dusty"))
    assert checked("a", "--older-than", "91", status=0)["prices"][0]["finding"] == "ok"
    assert checked("a", "--older-than", "90", status=1)["prices"][0]["finding"] == "old"


def test_a_given_price_and_a_reported_cost_are_not_compared(booked, checked):
    given = {"input_per_million": 7.0, "output_per_million": 0.0, "source": "registered"}
    booked(
        "a",
        bought("dearer", 7.0, rates=given),
        bought("named", 3.0, reported=True, rates={}),
        bought("gone"),
    )
    found = checked("a", status=0)
    assert {row["item"]: row["finding"] for row in found["prices"]} == {
        "p/dearer": "given", "p/named": "reported", "p/gone": "ok",
    }  # fmt: skip
    assert all(row["as_of"] is None for row in found["prices"])


def test_the_prices_of_devices_are_compared_by_the_hour(booked, checked):
    def hours(item, rate):
        time = {"leaf": "costs/gpu", "item": item, "device_seconds": 7200.0, "usd": 2 * rate}
        return time | {"rates": {"usd_per_hour": rate, "source": "RunPod"}}

    given = hours("H100 NVL", 1.5) | {"rates": {"usd_per_hour": 1.5, "source": "explicit"}}
    booked("a", hours("H100 NVL", 2.0), hours("odd card", 1.0), hours("gone", 4.0), given)
    found = checked("a", status=1)
    rows = [(row["item"], row["now_usd"], row["as_of"], row["finding"]) for row in found["prices"]]
    assert rows == [
        ("gone", 8.0, None, "ok"),
        ("H100 NVL", pytest.approx(6.38), "2026-11-09", "changed"),
        ("H100 NVL", 3.0, None, "given"),
        ("odd card", 2.0, None, "ok"),
    ]


def test_a_price_of_the_book_is_as_old_as_the_book(booked, checked):
    rates = {"input_per_million": 2.0, "output_per_million": 8.0, "source": "genai-prices 0.2.3"}
    booked("a", bought("gpt-4.1", 2.0, provider="openai", rates=rates))
    days = (date(2026, 12, 1) - date.fromisoformat(book.api_prices().day())).days
    found = checked("a", "--older-than", str(max(days, 0)), status=0)
    assert found["prices"][0]["as_of"] == book.api_prices().day()


def test_all_runs_are_checked_on_request(booked, checked):
    booked("a", bought("same"))
    booked("b", bought("dearer"))
    found = checked("--all", status=1)
    assert [(row["run"], row["finding"]) for row in found["prices"]] == [
        ("demo/a", "ok"), ("demo/b", "changed"),
    ]  # fmt: skip
    assert checked("a", status=0)["outdated"] == 0


def test_a_run_that_bought_nothing_is_never_outdated(booked, art_command):
    booked("a")
    assert art_command("prices", "check", "a") == "nothing has a price\n"


def test_every_price_that_still_holds_is_stated_so(booked, art_command):
    booked("a", bought("same"))
    assert "every price still holds" in art_command(
        "prices", "check", "a", plugins={"market": Market()}
    )


def test_a_check_needs_runs_and_a_number_of_days(booked, art_error):
    booked("a", bought("same"))
    assert "check needs a RUN or --all" in art_error("prices", "check")
    assert "check needs a RUN or --all" in art_error("prices", "check", "a", "--all")
    assert "got -1" in art_error("prices", "check", "a", "--older-than", "-1")
