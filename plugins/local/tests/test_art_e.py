"""The example of an agent for mails, in a short run: real weights, and a scripted provider that
judges and that answers as the prompted model, at the list prices of OpenAI.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from judge_server import USAGE, judging

import art_core as art
from art_core.hooks.host import installed_plugins
from art_core.log.rows import read_rows
from art_local.testing.tiny import save_tiny_model

PROGRAM = Path(__file__).parents[3] / "examples" / "art_e.py"
STEPS, QUESTIONS, NEW = 2, 2, 24
JUDGE, PROMPTED = "gpt-4.1", "gpt-4.1-mini"
PER_MILLION = {JUDGE: (2.0, 8.0), PROMPTED: (0.4, 1.6)}
CALL_USD = {
    model: (USAGE["prompt_tokens"] * asked + USAGE["completion_tokens"] * answered) / 1e6
    for model, (asked, answered) in PER_MILLION.items()
}


class ListPrices:
    """Sells on this machine what OpenAI sells, at its prices."""

    @art.hookimpl
    def art_token_rates(self, provider, model):
        if not provider.startswith("127.0.0.1") or model not in PER_MILLION:
            return None
        asked, answered = PER_MILLION[model]
        return art.TokenRates(input_per_million=asked, output_per_million=answered)


@pytest.fixture
def list_prices():
    plugins, book = installed_plugins(), ListPrices()
    plugins.register(book, "list-prices")
    yield
    plugins._manager.unregister(book)


def provider(request):
    texts = [message["content"] for message in request["messages"]]
    return scores(texts[-1]) if request["model"] == JUDGE else command(texts)


def scores(prompt):
    """Prefer attempts with more different letters."""
    shown = re.findall(r'<attempt id="(\d+)">\n(.*?)\n</attempt>', prompt, re.DOTALL)
    return json.dumps({"scores": [{"id": i, "score": len(set(text)) / 100} for i, text in shown]})


def command(texts):
    """Do what finds the answer."""
    asked = [event for text in texts for event in re.findall(r"day is the (.*)\?", text)][-1]
    if texts[-1].endswith("?"):
        return f"search {asked}"
    if texts[-1].startswith("From"):
        return "answer " + re.search(rf"{asked.split()[0]} is on (\w+)", texts[-1])[1]
    return f"read {texts[-1].split()[0]}"


@pytest.mark.torch
def test_it_trains_on_ruler_and_exact_parts_and_compares_with_a_prompted_model_in_dollars(
    tmp_path, monkeypatch, capsys, list_prices
):
    tiny = save_tiny_model(tmp_path / "tiny", context_length=2048)
    sizes = ["--steps", str(STEPS), "--questions", str(QUESTIONS), "--attempts", "4"]
    asked = ["--judge", JUDGE, "--baseline", PROMPTED, "--figure", str(tmp_path / "curve.svg")]
    monkeypatch.setattr(sys, "argv", ["art_e.py", "--base-model", str(tiny), *sizes, *asked])
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    monkeypatch.setenv("ART_SINKS", "")
    with judging(provider) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        runpy.run_path(str(PROGRAM), run_name="__main__")
    trained, prompted = (
        [row for row, _ in read_rows(tmp_path / "art-e" / "models" / name / "history.jsonl")]
        for name in ("art-e-001", "prompted")
    )
    steps = [row.metrics for row in trained if "reward/mean" in row.metrics]
    assert [row["data/step_num_groups_trainable"] for row in steps] == [QUESTIONS] * STEPS
    for row in steps:
        exact = row["reward/independent_reward"]
        assert row["reward/mean"] > exact / 2
        assert row["costs/train/judge/ruler"] == pytest.approx(QUESTIONS * CALL_USD[JUDGE])
        assert row["costs/gpu"] > 0
    (row,) = [row.metrics for row in prompted]
    assert (row["val/reward"], row["val/found"], row["val/read"], row["val/right"]) == (1, 1, 1, 1)
    assert row["val/usd_per_attempt"] == pytest.approx(3 * CALL_USD[PROMPTED])
    assert row["costs/eval/model"] == pytest.approx(2 * NEW * 3 * CALL_USD[PROMPTED])
    printed = capsys.readouterr().out
    assert "prompted@0: 1.000, $0.0016800 an answer" in printed
    assert "art-e/prompted@0 is better" in printed
    assert "<svg" in (tmp_path / "curve.svg").read_text()
