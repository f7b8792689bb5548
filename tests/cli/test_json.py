"""Every command answers with one JSON object, whatever it found."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

import art_core as art
from art_core.cli.arguments import Parser
from art_core.cli.main import main, parser
from art_core.cli.new import _KINDS as KINDS
from art_core.cli.output import print_json
from art_core.data.store import append_groups, trajectory_file
from art_core.queue.values import Leased
from art_core.testing.echo import EchoBackend

ROW = {
    "reward/mean": 1 / 3,
    "own/x": 1e300,
    "costs/far/m": 0.5,
    "costs/all": 0.5,
    "costs/cum/all": 0.5,
    "costs/cum/far": 0.5,
    "costs/cum/far/m": 0.5,
}
RECEIPTS = b',"_receipts":[{"leaf":"costs/far/m","item":"m","provider":"far","usd":0.5}]}'


class Everything:
    """A plugin that offers something to each command that asks plugins."""

    def list(self):
        return [SimpleNamespace(name="m", summary="one", path=Path("/m"), version="1")]

    def pull(self, name):
        return Path("/m") / name

    def install(self, name):
        return self.list()[0]

    def remove(self, name):
        return Path("/m")

    def bill(self, run_dir):
        return art.Bill(usd={"far/m": math.nan}, notes=("half of it",))

    @art.hookimpl
    def art_backends(self):
        offers = {"models": lambda: self, "engines": lambda: self, "bill": self.bill}
        return [art.BackendSpec(name="far", create=Far, summary="far away", **offers)]

    @art.hookimpl
    def art_sinks(self):
        return [art.SinkSpec(name="loud", create=Loud, summary="prints what it does")]

    @art.hookimpl
    def art_commands(self):
        def rate(arguments, plugins):
            yield "asking"
            row = {"device": arguments.device, "usd": math.inf, "at": date(2026, 3, 1)}
            yield art.Table(name="rates", rows=[row], columns=[art.Column(key="device")])

        def device(parser):
            parser.add_argument("device")

        def own(parser):
            parser.add_argument("--json", action="store_true")

        return [
            art.CommandSpec(name="rate", summary="rates", create=device, run=rate),
            art.CommandSpec(name="hello", summary="hello", create=lambda _: None, run=hello),
            art.CommandSpec(name="mine", summary="its own", create=own, run=lambda *_: ["[1]"]),
        ]


class Loud:
    def open(self, run):
        print("opened")

    def write(self, rows):
        print("written")

    def close(self, run):
        print("closed")


class Far:
    def __init__(self, path=Path("/far"), limit=math.inf):
        pass


def hello(arguments, plugins):
    yield "hello"
    yield "you"


LONG = "more/demo/models/long"
CALLS = {
    "init": [["demo"]],
    "examples": [[]],
    "examples list": [[]],
    "examples copy": [["first_loop", "copies"]],
    "train": [["agent"]],
    "plugins": [[]],
    "backends": [[], ["far"]],
    "sinks": [[]],
    "metrics": [[]],
    "models": [[]],
    "models list": [[]],
    "models pull": [["m"]],
    "engines": [[]],
    "engines list": [[]],
    "engines install": [["m"]],
    "engines remove": [["m"]],
    "runs": [[]],
    "show": [["a"], ["empty"]],
    "doctor": [["a"], ["empty"], ["a", "--fail"]],
    "forecast": [[LONG, "--to-step", "20"], [LONG, "--to-reward", "0.5"]],
    "eval": [["agent_module:rollout", "--scenarios", "list.json", "--models", "openai/m"]],
    "compare": [["a@1", "a@1"]],
    "check": [["agent_module.py:check_me", "--scenarios", "list.json", "--answer", "model"]],
    "env list": [[]],
    "env check": [["agent_module.py:check_me", "--scenarios", "list.json", "--answer", "model"]],
    "env play": [["agent_module.py:check_me", "--scenarios", "list.json"]],
    "leaderboard": [[], ["--matrix", "reward/mean"], ["--status", "failed"]],
    "costs": [["a"], ["empty"], ["a", "--per-step"], ["a", "--step", "1"], ["a", "--reconcile"]],
    "plot": [["a", "reward/mean"], ["a", "reward/mean", "--out", "x.svg"]],
    "export": [["a", "--out", "x.csv"]],
    "import traces": [["a"], ["chat.jsonl", "--messages-only"]],
    "retrain": [["a"]],
    "gateway": [["--model", "g", "--base-model", "m", "--steps", "0"]],
    "worker": [["agent_module:rollout", "--server", "http://127.0.0.1:9", "--key", "k"]],
    "sweep": [["--from", "a", "--grid", "learning_rate=1e-5"]],
    "reprice": [["a"]],
    "prices": [[]],
    "prices list": [[], ["gpt-4.1"]],
    "prices check": [["a"], ["--all"]],
    "prices update": [["list.json"]],
    "sync": [["a", "--sink", "loud"]],
    "skill": [[], ["--into", "skills"]],
    "completion": [["bash"]],
    "rm": [["a", "--yes"]],
    **{f"new {kind}": [["some-x"]] for kind in KINDS},
    "rate": [["H200"]],
    "hello": [[]],
    "mine": [[]],
}
AGENT = """
import art_core as art

async def rollout(model, scenario):
    return art.Trajectory()

async def check_me(model, scenario):
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=[{"role": "user", "content": "?"}]
    )
    return art.Trajectory(reward=float(completion.choices[0].message.content == scenario["model"]))
"""
PROJECT = """
version = 1
[run]
name = "a"
project = "demo"
rollout = "../agent_module.py:rollout"
scenarios = "../list.json"
steps = 1
[model]
base = "echo-base"
"""
ALL = [(*name.split(), *words) for name, calls in CALLS.items() for words in calls]


def leaves(one: argparse.ArgumentParser, name: str = "") -> list[str]:
    """Return all commands below a parser that can run."""
    found = [name.strip()] if one.get_default("run") else []
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                found += leaves(child, f"{name} {word}")
    return found


def strict(text: str):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def place(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "cache"))
    (tmp_path / "list.json").write_text('[{"model": "m", "prefill": 1, "sample": 2}]')
    chat = '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}'
    (tmp_path / "chat.jsonl").write_text(chat + "\n")
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "agent_module.py").write_text(AGENT)
    monkeypatch.setattr("sys.stdin", io.StringIO("m\n"))
    log = shelf.run("a", ROW) / "history.jsonl"
    log.write_bytes(log.read_bytes().replace(b"}\n", RECEIPTS + b"\n"))
    groups = [art.TrajectoryGroup([art.Trajectory()], metadata={"scenario_id": "x"})]
    for split in ("val", "train"):
        append_groups(trajectory_file(log.parent, split, 1), groups)
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "art.toml").write_text(PROJECT)
    for module in ("retrain", "gateway", "train"):
        monkeypatch.setattr(f"art_core.cli.{module}.make_backend", lambda *_: EchoBackend())
    monkeypatch.setattr("art_core.cli.worker.RemoteQueue", FinishedQueue)
    shelf.run("empty")
    type(shelf)(tmp_path / "more").run(
        "long", *[{"reward/mean": 0.04 * step, "costs/all": 0.5} for step in range(12)]
    )
    return shelf


class FinishedQueue:
    """A queue elsewhere that has no attempts to make."""

    def __init__(self, url, key, *, patience_s):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def lease(self, worker, n, *, version, wait_s):
        return Leased(leases=(), finished=True)


@pytest.fixture
def art_json(art_command):
    """Run a command with `--json`; return the document."""
    return lambda *words: strict(art_command(*words, "--json", plugins={"all": Everything()}))


def test_each_command_that_there_is_has_a_call_here():
    host = art.Plugins()
    host.register(Everything(), "all")
    assert sorted(leaves(parser(host))) == sorted(CALLS)


@pytest.mark.parametrize("call", ALL, ids=" ".join)
def test_every_command_answers_with_json(place, art_json, call):
    assert art_json(*call)


@pytest.mark.parametrize("call", [call for call in ALL if call != ("mine",)], ids=" ".join)
def test_an_error_leaves_standard_output_empty(place, capsys, monkeypatch, call):
    host = art.Plugins()
    host.register(Everything(), "all")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", break_(Parser.parse_args))
    assert main([*call, "--json"], host) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("art: it broke\n")


def break_(parse_args):
    def parsed(self, *given):
        arguments = parse_args(self, *given)
        run = arguments.run

        def breaking(*given):
            yield from run(*given)
            raise art.ConfigError("it broke")

        arguments.run = breaking
        return arguments

    return parsed


@pytest.mark.parametrize(
    "command", ["runs", "leaderboard", "plugins", "backends", "sinks", "models", "engines"]
)
def test_no_rows_are_an_empty_list(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("ART_DIR", str(tmp_path))
    assert main([command, "--json"], art.Plugins()) == 0
    document = strict(capsys.readouterr().out)
    assert [value for value in document.values() if isinstance(value, list)] == [[]]


def test_numbers_are_not_rounded_and_paths_and_times_are_texts(place, art_json):
    (run, empty) = art_json("runs")["runs"]
    assert run["reward"] == 1 / 3
    assert run["path"] == str(place.path / "demo" / "models" / "a")
    assert datetime.fromisoformat(run["last_row_at"]) == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert empty["step"] is empty["reward"] is empty["last_row_at"] is None


def test_costs_have_the_tree_what_was_bought_and_the_price_of_reward(place, art_json):
    costs = art_json("costs", "a")
    assert (costs["run"], costs["training_steps"]) == ("demo/a", 1)
    assert costs["costs"][2] == {
        "path": "far/m", "usd": 0.5, "share": 1.0, "usd_per_step": 0.5,
    }  # fmt: skip
    assert costs["bought"][0]["item"] == "far/m"
    assert costs["unpriced"] == []
    assert costs["reward"]["usd_per_point_last"] is None
    assert art_json("costs", "empty")["costs"] == []
    bills = art_json("costs", "a", "--reconcile")
    assert bills["bills"][0]["billed_usd"] is None
    assert bills["notes"] == ["half of it"]


def test_a_board_has_every_column_of_every_run(place, art_json):
    board = art_json("leaderboard")
    assert board["runs"][0]["own/x"] == 1e300
    assert board["runs"][0]["model"] == "a"
    assert board["left_out"] == 0
    (model, _) = art_json("leaderboard", "--matrix", "reward/mean")["models"]
    assert model == {"model": "a", "projects": {"demo": 1 / 3}}


def test_a_board_is_csv_or_json(place, art_error):
    assert "two formats" in art_error("leaderboard", "--csv", "--json")


def test_a_curve_has_its_points(place, art_json):
    (curve,) = art_json("plot", "a", "reward/mean")["curves"]
    assert curve == {"run": "demo/a", "key": "reward/mean", "x": [1], "y": [1 / 3]}
    shown = {curve["label"]: curve for curve in art_json("show", "a")["curves"]}
    assert shown["own/x"]["values"] == [1e300]
    assert shown["own/x"]["steps"] == [1]


def test_the_options_of_a_backend_have_their_defaults(art_json):
    assert art_json("backends", "far")["options"] == [
        {"name": "path", "required": False, "default": "/far"},
        {"name": "limit", "required": False, "default": None},
    ]


def test_text_of_a_command_goes_to_standard_error(capsys):
    host = art.Plugins()
    host.register(Everything(), "all")
    assert main(["rate", "H200", "--json"], host) == 0
    out, err = capsys.readouterr()
    assert strict(out) == {"rates": [{"device": "H200", "usd": None, "at": "2026-03-01"}]}
    assert err == "asking\n"


def test_a_command_that_has_only_text_has_its_lines(art_json):
    assert art_json("hello") == {"lines": ["hello", "you"]}


def test_a_plugin_s_own_option_of_that_name_stays_its_own(art_json):
    assert art_json("mine") == [1]


def test_the_option_may_stand_before_an_action(art_command):
    plugins = {"all": Everything()}
    after = art_command("models", "list", "--json", plugins=plugins)
    assert art_command("models", "--json", "list", plugins=plugins) == after


@attrs.frozen
class Point:
    x: float
    at: Path


def test_any_value_becomes_strict_json(capsys):
    value = {
        1: [math.nan, -math.inf, True, None, 2**70],
        "floats": [0.5, math.nan],
        "steps": [1, 2],
        "far": [1, -(2**64)],
        "point": Point(0.5, Path("/a")),
        "third": Fraction(1, 4),
        "real": math.inf,
        "name": os.fsdecode(b"odd-\xff"),
        "dörf 🎨": int,
        "set": {3},
    }
    print_json([art.Record(value)])
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert strict(printed) == {
        "1": [None, None, True, None, 2**70],
        "floats": [0.5, None],
        "steps": [1, 2],
        "far": [1, -(2**64)],
        "point": {"x": 0.5, "at": "/a"},
        "third": 0.25,
        "real": None,
        "name": "odd-\\udcff",
        "dörf 🎨": "<class 'int'>",
        "set": [3],
    }
