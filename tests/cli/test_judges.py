"""`art check --judges`."""

import json

import pytest
from judge_server import USAGE, judging

import art_core as art
from art_core.cli.main import main

PAIRS = [
    {"question": "Why?", "better": "good one", "worse": "bad"},
    {"better": "good", "worse": "bad and long"},
]


def prefers_good(request):
    first = request["messages"][1]["content"].partition("</a>")[0]
    return json.dumps({"score": float("good" in first)})


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return str(file)


def run(answer, pairs, monkeypatch, *more):
    with judging(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        asked = ["check", "--judges", "gpt-4.1-mini, openai/gpt-4.1", "--pairs", pairs, *more]
        status = main(asked, art.Plugins())
    return status, server.requests


def priced(monkeypatch):
    """Let judges at the local server cost what they cost at OpenAI."""
    monkeypatch.setattr("art_core.rewards.service.provider_at", lambda url: "openai")


def test_the_cheapest_judge_that_agrees_is_named(pairs, monkeypatch, capsys):
    priced(monkeypatch)
    status, requests = run(prefers_good, pairs, monkeypatch, "--criteria", "Be right.")
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert len(requests) == 2 * 3 * len(PAIRS)
    assert "Be right." in requests[0]["messages"][1]["content"]
    usd = (USAGE["prompt_tokens"] * 0.4 + USAGE["completion_tokens"] * 1.6) / 1e6
    assert ["gpt-4.1-mini", "100%", "100%", "100%", f"{usd:.6f}"] in [
        line.split() for line in printed.splitlines()
    ]
    assert "gpt-4.1-mini is the cheapest that agrees in at least 90% of the pairs" in printed


def test_judges_that_do_not_agree_are_a_fault(pairs, monkeypatch, capsys):
    priced(monkeypatch)
    status, _ = run(lambda _: '{"score": 1}', pairs, monkeypatch, "--json")
    document = json.loads(capsys.readouterr().out)
    assert (status, document["cheapest"]) == (1, None)
    assert [(j["agreement"], j["consistency"]) for j in document["judges"]] == [(0.5, 0.0)] * 2


def test_a_judge_without_a_price_is_no_answer(pairs, monkeypatch, capsys):
    status, _ = run(prefers_good, pairs, monkeypatch)
    assert status == 1
    assert "fault: no judge of known price agrees in 90%" in capsys.readouterr().out


def test_what_is_missing_is_named(pairs, art_error, tmp_path):
    assert "needs a target, or --judges and --pairs" in art_error("check")
    assert "needs a target" in art_error("check", "--judges", "a")
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"better": "a"}\n')
    assert "is no pair" in art_error("check", "--judges", "a", "--pairs", str(odd))
    odd.write_text("3\n")
    assert "3 is no pair" in art_error("check", "--judges", "a", "--pairs", str(odd))
