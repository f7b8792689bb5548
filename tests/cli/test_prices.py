import json
from datetime import date

import pytest

from art_core.cli import prices
from art_core.prices.tables import listed_models

LIST = [
    {"tinker_id": "Qwen/Qwen3-8B", "prefill": "$0.25", "sample": "$0.75", "train": "$0.50"},
    {"tinker_id": "Qwen/Qwen3.5-4B", "prefill": 0.33, "sample": 1.005, "train": 0.737},
    {"tinker_id": "new/model", "prefill": 1, "sample": 2},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prices, "_today", lambda: date(2026, 12, 1))
    listed_models.cache_clear()
    yield
    listed_models.cache_clear()


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
    assert printed[-1].endswith("prices of lists more than 60 days old: art prices update")
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
    assert "days old" not in art_command("prices")


def test_an_update_without_a_source_asks_the_service_itself(art_command, monkeypatch):
    asked = []

    def fetch_list(source, provider, today):
        asked.append((source, provider, today))
        return list(listed_models().values())[:1]

    monkeypatch.setattr(prices, "fetch_list", fetch_list)
    assert "no price has changed" in art_command("prices", "update")
    address = "https://tinker-docs.thinkingmachines.ai/tinker/models.json"
    assert asked == [(address, "tinker", date(2026, 12, 1))]
