"""`art retrain` and `art sweep`, on a backend whose weights are one number."""

from __future__ import annotations

import json

import attrs
import pytest

import art_core as art
from art_core.cli.main import main
from art_core.testing.echo import EchoBackend


@attrs.define
class Measured(EchoBackend):
    share: float = 1.0

    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        rate = options.get("learning_rate", 0.5)
        measured = {"loss/train": rate, "loss/effective_sample_size": self.share}
        return attrs.evolve(result, metrics={**result.metrics, **measured})


class Offer:
    @art.hookimpl
    def art_backends(self):
        return [art.BackendSpec(name="near", create=Measured, summary="")]


@pytest.fixture
async def run(tmp_path, monkeypatch, shelf):
    monkeypatch.chdir(tmp_path)
    plugins = art.Plugins()
    plugins.register(Offer(), "near")
    monkeypatch.setattr("art_core.model.backend.installed_plugins", lambda: plugins)
    model = art.TrainableModel(name="agent", project="demo", base_model="echo-base", sinks=[])
    await model.register("near")
    for _ in range(2):
        attempts = [art.Trajectory(reward=r) for r in (0.0, 1.0)]
        await model.train([art.TrajectoryGroup(attempts)], learning_rate=0.25)
    await model.close()


def test_steps_are_listed_beside_the_originals(run, art_command):
    shown = art_command("retrain", "agent", "--backend", "near", "--set", "learning_rate=0.125")
    assert "0.12500   0.25000" in shown
    assert "art plot demo/agent demo/agent-retrained loss/train" in shown
    again = art_command("retrain", "agent", "--backend", "near", "--name", "b", "--json")
    assert [step["loss"] for step in json.loads(again)["steps"]] == [0.25, 0.25]


def test_both_runs_are_plotted(run, art_command, tmp_path):
    out = tmp_path / "curves.png"
    shown = art_command(
        "retrain", "agent", "--backend", "near", "--steps", "2", "--out", str(out),
        "--set", "scale_rewards=true", "--set", "loss_fn=ppo", "--set", "epsilon=none",
    )  # fmt: skip
    assert str(out) in shown
    assert out.read_bytes().startswith(b"\x89PNG")
    options = art.open_run("agent-retrained").path / "options.jsonl"
    assert json.loads(options.read_text())["options"] == {
        "learning_rate": 0.25, "scale_rewards": True, "loss_fn": "ppo", "epsilon": None,
    }  # fmt: skip


def test_it_tells_why_it_stopped(run, art_command):
    options = ("--backend", "near", "--backend-set", "share=0.2", "--steps", "1:2")
    shown = art_command("retrain", "agent", *options)
    assert "stopped: the effective sample size fell to 20% at step 1" in shown


def test_a_grid_lists_each_combination_the_lowest_loss_first(run, art_command):
    grid = ("--grid", "learning_rate=0.5,0.125", "--grid", "loss_fn=cispo,ppo")
    found = json.loads(
        art_command("sweep", "--from", "agent", "--backend", "near", *grid, "--json")
    )
    assert [row["options"] for row in found["runs"]] == [
        "learning_rate=0.125 loss_fn=cispo", "learning_rate=0.125 loss_fn=ppo",
        "learning_rate=0.5 loss_fn=cispo", "learning_rate=0.5 loss_fn=ppo",
    ]  # fmt: skip
    assert found["runs"][0]["run"] == "demo/agent-sweep-003"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("retrain", "agent", "--set", "learning_rate"), "is no OPTION=VALUE"),
        (("sweep", "--from", "agent", "--grid", "learning_rate=1,"), "is no OPTION=A,B"),
    ],
)
def test_wrong_options_are_explained(run, art_error, arguments, said):
    assert said in art_error(*arguments)


def test_a_wrong_option_of_training_leaves_no_run(run, capsys):
    command = ["retrain", "agent", "--backend", "near", "--set", "learning_rat=1"]
    assert main(command) == 2
    assert "Did you mean 'learning_rate'?" in capsys.readouterr().err
    assert [run.name for run in art.open_run("agent").path.parent.iterdir()] == ["agent"]


def test_a_wrong_range_is_explained(run, capsys):
    with pytest.raises(SystemExit):
        main(["retrain", "agent", "--steps", "1:x"])
    assert "is no range of steps; give one like 1:12" in capsys.readouterr().err
