from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime

import attrs
import pytest
from billing_server import (
    ADMIN_KEY,
    anthropic_cost,
    anthropic_tokens,
    billing_server,
    openai_cost,
    openai_tokens,
)

from art_core.base.errors import ConfigError
from art_core.reports import bills
from art_core.reports.bills import Scope, Use, read_bill, undated

COSTS, COMPLETIONS = "/v1/organization/costs", "/v1/organization/usage/completions"
REPORT, MESSAGES = "/v1/organizations/cost_report", "/v1/organizations/usage_report/messages"
FIRST = date(2026, 11, 20)
DAYS = {FIRST + timedelta(days=n) for n in range(5)}
ALL = Scope()


@pytest.fixture
def server(monkeypatch):
    """The services at an address of this machine, with an admin key; waits are kept, not made."""
    with billing_server() as server:
        for name, (api, read) in list(bills.BILLS.items()):
            monkeypatch.setenv(api.variable, ADMIN_KEY)
            local = attrs.evolve(api, url=server.url, wait=server.waits.append)
            monkeypatch.setitem(bills.BILLS, name, (local, read))
        yield server


def by_day(bill):
    return {(day.day, model): round(use.usd, 9) for (day, model), use in bill.uses.items()}


def test_openai_s_costs_are_read_by_day_and_model_over_all_pages(server):
    for n in range(5):
        server.add(COSTS, f"2026-11-{20 + n}",
                   openai_cost("gpt-5-2025-08-07, input", 0.25),
                   openai_cost("gpt-5-2025-08-07, cached input", "0.05"),
                   openai_cost("gpt-5-2025-08-07, output", 1),
                   openai_cost(None, 0.06))  # fmt: skip
    bill = read_bill("openai", DAYS, ALL)
    assert by_day(bill) == {
        (20 + n, item): usd for n in range(5) for item, usd in (("gpt-5", 1.3), ("other", 0.06))
    }
    assert [path for path, _ in server.requests] == [COSTS] * 3 + [COMPLETIONS] * 3
    query = server.requests[0][1]
    assert query["start_time"] == [str(int(datetime(2026, 11, 20, tzinfo=UTC).timestamp()))]
    assert query["end_time"] == [str(int(datetime(2026, 11, 25, tzinfo=UTC).timestamp()))]
    assert (query["bucket_width"], query["group_by[]"]) == (["1d"], ["line_item"])


def test_openai_s_tokens_are_counted_by_tier(server):
    server.add(COMPLETIONS, "2026-11-20",
               openai_tokens("gpt-5-2025-08-07", input_tokens=1000, input_cached_tokens=400,
                             output_tokens=50, num_model_requests=3),
               openai_tokens("gpt-5-2025-08-07", input_tokens=10, service_tier="flex"),
               openai_tokens("gpt-5-2025-08-07", input_tokens=7, batch=True))  # fmt: skip
    assert read_bill("openai", DAYS, ALL).uses == {
        (FIRST, "gpt-5"): Use(
            calls=5, input=1017, cached=400, output=50,
            tiers={"standard": 1050, "flex": 10, "batch": 7},
        )
    }  # fmt: skip


def test_anthropic_s_amounts_are_texts_in_cents(server):
    server.add(REPORT, "2026-11-20",
               anthropic_cost("claude-opus-5-20261001", "123.78912"),
               anthropic_cost("claude-opus-5-20261001", "0.01", token_type="output_tokens"),
               anthropic_cost(None, "200.00", cost_type="web_search",
                              description="Web Search Usage"))  # fmt: skip
    server.add(MESSAGES, "2026-11-20",
               anthropic_tokens("claude-opus-5-20261001", uncached_input_tokens=1000,
                                cache_read_input_tokens=300, output_tokens=50,
                                cache_creation={"ephemeral_1h_input_tokens": 20,
                                                "ephemeral_5m_input_tokens": 80}),
               anthropic_tokens("claude-opus-5-20261001", output_tokens=5,
                                service_tier="priority"))  # fmt: skip
    bill = read_bill("anthropic", DAYS, ALL)
    assert by_day(bill) == {(20, "claude-opus-5"): 1.2379912, (20, "web search usage"): 2.0}
    opus = bill.uses[FIRST, "claude-opus-5"]
    assert (opus.input, opus.cached, opus.output) == (1400, 300, 55)
    assert opus.tiers == {"standard": 1450, "priority": 5}
    paths = [path for path, _ in server.requests]
    assert paths == [REPORT] * 3 + [MESSAGES] * 3
    query = server.requests[0][1]
    assert query["starting_at"] == ["2026-11-20T00:00:00Z"]
    assert query["ending_at"] == ["2026-11-25T00:00:00Z"]


def test_days_on_which_the_run_did_not_call_are_left_out(server):
    for day in ("2026-11-20", "2026-11-22"):
        server.add(COSTS, day, openai_cost("gpt-5, input", 1.0), openai_cost("gpt-5", 2, "eur"))
    bill = read_bill("openai", {FIRST, date(2026, 11, 21)}, ALL)
    assert by_day(bill) == {(20, "gpt-5"): 1.0}
    assert bill.foreign == {(FIRST, "EUR"): Decimal(2)}


def test_a_bill_is_limited_to_projects_keys_and_workspaces(server):
    read_bill("openai", DAYS, Scope(projects=("proj_1", "proj_2"), keys=("key_1",)))
    for _, query in server.requests:
        assert query["project_ids[]"] == ["proj_1", "proj_2"]
        assert query["api_key_ids[]"] == ["key_1"]
    server.add(REPORT, "2026-11-20",
               anthropic_cost("a", "100", workspace_id="wrkspc_1"),
               anthropic_cost("a", "10", workspace_id="wrkspc_2"),
               anthropic_cost("a", "1"))  # fmt: skip
    assert by_day(read_bill("anthropic", DAYS, Scope(projects=("wrkspc_1",)))) == {(20, "a"): 1.0}
    assert by_day(read_bill("anthropic", DAYS, Scope(projects=("default",)))) == {(20, "a"): 0.01}
    with pytest.raises(ConfigError, match="not split by keys"):
        read_bill("anthropic", DAYS, Scope(keys=("apikey_1",)))


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("gpt-5-2025-08-07", "gpt-5"),
        ("Claude-Sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("gpt-5-chat-latest", "gpt-5-chat"),
        ("o3", "o3"),
        ("gpt-4.1-mini", "gpt-4.1-mini"),
    ],
)
def test_versions_of_a_model_have_its_name(name, bare):
    assert undated(name) == bare


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_key_for_models_is_refused_and_never_shown(server, monkeypatch, provider):
    variable = bills.BILLS[provider][0].variable
    monkeypatch.setenv(variable, "sk-for-models")
    with pytest.raises(ConfigError) as caught:
        read_bill(provider, DAYS, ALL)
    assert f"does not accept the key in {variable}" in str(caught.value)
    assert "admin-keys" in str(caught.value)
    assert "sk-for-models" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "problem"), [("", "is not set"), (" \n", "is not set"), ("sk\nx", "holds characters")]
)
def test_without_a_key_nothing_is_sent(server, monkeypatch, key, problem):
    monkeypatch.setenv("OPENAI_ADMIN_KEY", key)
    with pytest.raises(ConfigError, match=f"OPENAI_ADMIN_KEY {problem}"):
        read_bill("openai", DAYS, ALL)
    assert server.requests == []


def test_a_limit_on_requests_is_waited_for_as_long_as_the_service_states(server):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.failures += [
        (429, {"retry-after": "7"}, {}),
        (429, {"retry-after": later}, {}),
        (503, {"retry-after": "soon"}, b"not JSON"),
    ]
    server.add(COSTS, "2026-11-20", openai_cost("gpt-5, input", 1.0))
    assert by_day(read_bill("openai", DAYS, ALL)) == {(20, "gpt-5"): 1.0}
    assert server.waits[0] == 7.0
    assert 0.0 <= server.waits[1] <= 30.0
    assert server.waits[2] == 8.0


def test_a_long_wait_is_left_to_the_user(server):
    server.failures.append((429, {"retry-after": "3600"}, {}))
    with pytest.raises(ConfigError, match=r"answers 429 after 1 tries. Try again in 3600 s"):
        read_bill("openai", DAYS, ALL)
    server.failures += [(529, {}, {})] * 4
    with pytest.raises(ConfigError, match=r"answers 529 after 4 tries. Try again later"):
        read_bill("anthropic", DAYS, ALL)
    assert server.waits == [2.0, 4.0, 8.0]


def test_a_refusal_is_given_with_its_reason_and_without_the_key(server):
    reason = f"Missing scopes: api.usage.read of {ADMIN_KEY}"
    server.failures.append((403, {}, {"error": {"message": reason}}))
    with pytest.raises(ConfigError) as caught:
        read_bill("openai", DAYS, ALL)
    assert "may not read the bill with this key: Missing scopes: api.usage.read of ..." in str(
        caught.value
    )
    server.failures.append((400, {}, b"<html>"))
    with pytest.raises(ConfigError, match="OpenAI answers 400$"):
        read_bill("openai", DAYS, ALL)


def test_the_key_does_not_follow_a_redirect(server):
    with billing_server() as other:
        server.failures.append((302, {"location": f"{other.url}{COSTS}"}, {}))
        with pytest.raises(ConfigError, match="answers 302"):
            read_bill("openai", DAYS, ALL)
        assert other.requests == []


def test_a_service_that_does_not_answer_is_an_error(server, monkeypatch):
    api, read = bills.BILLS["openai"]
    monkeypatch.setitem(bills.BILLS, "openai", (attrs.evolve(api, url="http://127.0.0.1:9"), read))
    with pytest.raises(ConfigError, match="http://127.0.0.1:9 does not answer"):
        read_bill("openai", DAYS, ALL)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "sent no JSON"),
        ([], "sent no list of days"),
        ({"data": {}}, "sent no list of days"),
        ({"data": [], "has_more": True, "next_page": None}, "the page '' twice, or none"),
        ({"data": [{}], "has_more": False}, "unknown form: KeyError"),
        ({"data": [{"results": [1]}], "has_more": False}, "unknown form: AttributeError"),
        (
            {"data": [{"start_time": 1, "results": [openai_cost("m", "nan")]}], "has_more": False},
            "unknown form: ValueError",
        ),
        (
            {"data": [{"start_time": 1, "results": [openai_cost("m", "?")]}], "has_more": False},
            "unknown form: InvalidOperation",
        ),
    ],
)
def test_an_answer_of_another_form_is_an_error(server, body, problem):
    server.failures.append((200, {}, body))
    with pytest.raises(ConfigError, match=problem):
        read_bill("openai", DAYS, ALL)


def test_pages_that_do_not_end_are_an_error(server):
    page = {"data": [], "has_more": True, "next_page": "page_7"}
    server.failures += [(200, {}, page)] * 3
    with pytest.raises(ConfigError, match="sent the page 'page_7' twice"):
        read_bill("openai", DAYS, ALL)
    assert len(server.requests) == 2
