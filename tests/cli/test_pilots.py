"""`art forecast` before the first step: real pilots on an echo, and on a priced server."""

import json
import sys

import orjson
import pytest
from judge_server import judging

import art_core as art
from art_core.base.errors import BackendError
from art_core.testing.echo import EchoBackend

MODULE = """
import art_core as art


async def rollout(model, scenario):
    attempt = art.Trajectory(messages_and_choices=[{"role": "user", "content": scenario["id"]}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=attempt.messages()
    )
    attempt.messages_and_choices.append(completion.choices[0])
    if scenario.get("fails"):
        raise ValueError("no such mail")
    attempt.reward = float(scenario["id"] == "s1")
    return attempt


async def judge(group):
    return group
"""
PROJECT = """
version = 1
[run]
name = "a"
project = "demo"
rollout = "../my_agent.py:rollout"
scenarios = "../train.jsonl"
judge = "../my_agent.py:judge"
steps = 5
attempts = 4
[model]
base = "echo-base"
[backend]
name = "far"
[eval]
scenarios = "../train.jsonl"
every = 2
"""


class Stuck(EchoBackend):
    async def train(self, model, groups, **options):
        raise BackendError("out of memory")


class Far:
    @art.hookimpl
    def art_backends(self):
        def create(price: float | None = 3600.0, stuck: bool = False):
            return (Stuck if stuck else EchoBackend)(gpu_cost_per_hour_usd=price)

        return [
            art.BackendSpec(name="far", create=create, summary=""),
            art.BackendSpec(name="near", create=create, summary=""),
        ]


@pytest.fixture
def pilots(tmp_path, monkeypatch, shelf, art_command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ART_SINKS", "")
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    (tmp_path / "my_agent.py").write_text(MODULE)
    lines = [orjson.dumps({"id": f"s{i}"}) for i in range(3)]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    plugins = art.Plugins()
    plugins.register(Far(), "far")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)

    def forecast(*words, model="echo-base", scenarios="train.jsonl"):
        given = ["my_agent:rollout", "--scenarios", scenarios, "--model", model]
        text = art_command("forecast", *given, *words, "--json", plugins={"far": Far()})
        return json.loads(text)

    return forecast


def prices(tmp_path, *models):
    rows = [{"model": m, "prefill": p, "sample": 2 * p, "train": t} for m, p, t in models]
    (tmp_path / "cache").mkdir()
    stored = [row | {"provider": "host", "as_of": "2026-11-01", "source": "s"} for row in rows]
    (tmp_path / "cache" / "training_prices.json").write_bytes(orjson.dumps({"prices": stored}))


@pytest.fixture(autouse=True)
def _fresh_prices():
    from art_core.prices.tables import listed_models

    listed_models.cache_clear()
    yield
    listed_models.cache_clear()


def test_pilots_are_made_priced_and_trained_once(pilots, tmp_path):
    prices(tmp_path, ("echo-base", 1, 3), ("other", 0.01, 0.01), ("untrained", 1, None))
    found = pilots("--backend", "far", "--steps", "5", "--group", "4", "--pilots", "6")
    assert (found["pilots"], found["failures"], found["attempts"]) == (6, 0, 60)
    assert found["reward"] == pytest.approx(1 / 3)
    whole, gpu = found["costs"]
    assert (whole["name"], gpu["name"]) == ("all", "gpu")
    assert whole["spent"] == pytest.approx(gpu["spent"])
    assert gpu["high90"] > gpu["low90"] > gpu["spent"] > 0
    used = {row["name"]: row for row in found["usage"]}
    # "user:s0\nassistant:" has 18 bytes, and the answer "s0" with its end 3
    assert used["prompt tokens"]["spent"] == 6 * 18
    assert used["sampled tokens"]["coming"] == pytest.approx(60 * 3)
    assert used["tokens trained"]["coming"] == pytest.approx(60 * 21)
    offers = {(row["where"], row["model"]): row for row in found["offers"]}
    assert offers["far", "echo-base"]["usd"] > 0
    assert offers["host", "echo-base"]["usd"] == pytest.approx(60 * (18 + 6 + 63) / 1e6)
    assert offers["host", "other"]["assumes"].startswith("another model, with as many tokens")
    assert offers["near", "echo-base"]["usd"] is None
    assert ("host", "untrained") not in offers
    assert found["cheapest"] == "host"
    assert not (tmp_path / ".art" / "forecast").exists()


def test_the_text_states_the_cheapest(pilots, art_command, capsys):
    text = art_command(
        "forecast", "my_agent:rollout", "--scenarios", "train.jsonl", "--model", "echo-base",
        "--backend", "far", plugins={"far": Far()},
    )  # fmt: skip
    assert "8 pilots of echo-base, 2,400 attempts planned" in text
    assert "cheapest for this model: far, $" in text


def test_a_device_without_a_price_and_training_that_fails_are_stated(pilots):
    free = pilots("--backend", "far", "--backend-set", "price=null")
    assert free["costs"] == []
    assert free["offers"][0]["usd"] is None
    assert free["offers"][0]["assumes"].startswith("no price is known for its device")
    assert free["cheapest"] is None
    stuck = pilots("--backend", "far", "--backend-set", "stuck=true", "--pilots", "2")
    assert stuck["notes"] == ["training was not measured, and is in no sum: out of memory"]


def test_a_run_of_the_name_of_a_project_is_the_run(pilots, tmp_path, shelf, art_command, art_error):
    shelf.run("agent", *({"costs/all": 1.0, "costs/gpu": 1.0} for _ in range(5)))
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "art.toml").write_text(PROJECT)
    assert "from step" in art_command("forecast", "agent", "--to-step", "9")
    assert "it can't take run.attempts=4" in art_error(
        "forecast", "agent", "--to-step", "9", "--group", "4"
    )


def test_failed_pilots_are_counted(pilots, tmp_path):
    lines = [{"id": "s1"}, {"id": "s2", "fails": True}]
    (tmp_path / "some.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    found = pilots("--backend", "far", "--pilots", "2", scenarios="some.jsonl")
    assert (found["pilots"], found["failures"]) == (2, 1)


def test_a_project_states_the_plan_itself(pilots, tmp_path, art_command):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "art.toml").write_text(PROJECT)
    command = ("forecast", "agent", "--pilots", "3", "--json")
    found = json.loads(art_command(*command, plugins={"far": Far()}))
    # 5 steps of 3 scenarios with 4 attempts; evaluations of 3 at steps 0, 2, 4 and 5
    assert (found["steps"], found["scenarios"], found["group"]) == (5, 3, 4)
    assert (found["evaluations"], found["attempts_per_evaluation"]) == (4, 3)
    assert found["attempts"] == 72
    command += ("--steps", "2", "--group", "6", "--scenarios-per-step", "1")
    found = json.loads(art_command(*command, plugins={"far": Far()}))
    assert (found["steps"], found["scenarios"], found["group"]) == (2, 1, 6)


def test_a_prompted_model_is_measured_by_its_receipts(pilots, monkeypatch, tmp_path):
    prices(tmp_path, ("gpt-4.1-mini", 1, 3))
    with judging(lambda request: request["messages"][-1]["content"]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        found = pilots("--pilots", "3", "--steps", "1", "--group", "1", model="openai/gpt-4.1-mini")
    # the server counts 1,000 tokens of each prompt and 100 of each answer
    used = {row["name"]: row["spent"] for row in found["usage"]}
    assert used == {
        "prompt tokens": pytest.approx(3000), "sampled tokens": pytest.approx(300),
        "tokens trained": pytest.approx(3300), "wall clock": used["wall clock"],
        "trajectories": used["trajectories"],
    }  # fmt: skip
    (host, *_) = found["offers"]
    assert (host["where"], host["usd"]) == ("host", pytest.approx(3 * (1000 + 200 + 3300) / 1e6))
    assert found["cheapest"] == "host"


def test_without_counts_of_tokens_no_token_has_a_price(pilots, monkeypatch):
    def bare(request):
        message = {"role": "assistant", "content": "s1"}
        return 200, {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}

    with judging(bare) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        found = pilots("--pilots", "2", model="openai/m")
    assert found["notes"] == ["no token was counted: prices by the token are not compared"]
    assert {row["where"] for row in found["offers"]} == {"far", "near"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my_agent:rollout", "--scenarios", "train.jsonl"], "the pilots need --model"),
        (["my_agent:rollout", "--scenarios", "train.jsonl", "--model", "m"], "no backend is named"),
        (["my_agent:rollout", "--scenarios", "none.jsonl", "--model", "m"], "has no scenarios"),
        (["my_agent:rollout"], "a rollout needs --scenarios FILE"),
        (["a"], "needs --to-step N or --to-reward X"),
        (["my_agent:rollout", "--scenarios", "train.jsonl", "--to-step", "3"], "give --steps N"),
        (["agent", "--backend-set", "a=1"], "A project has them in [backend.NAME]"),
    ],
)
def test_what_is_missing_is_named(pilots, tmp_path, art_error, words, message):
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "art.toml").write_text(PROJECT)
    assert message in art_error("forecast", *words)


def test_counts_are_whole_numbers_from_1_on(pilots, capsys):
    from art_core.cli.main import main

    with pytest.raises(SystemExit):
        main(["forecast", "a", "--pilots", "0"])
    assert "a whole number of at least 1 is needed, got '0'" in capsys.readouterr().err


def test_one_pilot_is_trained_with_a_copy_and_gives_no_interval(pilots):
    found = pilots("--backend", "far", "--pilots", "1")
    assert found["notes"] == []
    assert found["costs"][0]["median"] is None
    assert found["cheapest"] is None
