"""`art checkpoints`: listed, deleted, forked, merged and compared."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import load_file, save_file

import art_core as art
from art_core.base.files import take_lock
from art_core.cli.main import main
from art_local.session.checkpoints import CheckpointStore

LAYERS = ("model.layers.0.mlp.up", "model.layers.0.mlp.down", "model.layers.1.mlp.up")
REWARDS = {1: 0.2, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.3, 6: 0.4}


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in LAYERS:
        a, b = (torch.randn(*shape, generator=generator) for shape in ((rank, 6), (5, rank)))
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    return tensors


def deltas(directory):
    """Return alpha / rank * B @ A by layer."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    return {
        name: config["lora_alpha"]
        / config["r"]
        * tensors[f"base_model.model.{name}.lora_B.weight"]
        @ tensors[f"base_model.model.{name}.lora_A.weight"]
        for name in LAYERS
    }


def row(seq, step, split, **metrics):
    return art.MetricsRow(
        seq=seq,
        attempt=1,
        step=step,
        split=split,
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        metrics={key.replace("__", "/"): value for key, value in metrics.items()},
    ).to_line()


@pytest.fixture
def written(tmp_path):
    """Write a run with checkpoints: of LoRA, or of all weights."""

    def write(name="one", steps=REWARDS, full=False, rank=2, **manifest):
        run = tmp_path / "demo" / "models" / name
        about = {
            "model": name,
            "seed": 0,
            "dtype": "float32",
            "versions": {},
            "base_model": "base",
            "base_fingerprint": "f" * 64,
            "quantization": None,
            "full_finetune": full,
            "lora_rank": None if full else rank,
            "lora_alpha": None if full else 4,
            "reference_step": 0,
        }
        for step in steps:

            def fill(directory, step=step):
                if full:
                    weights = {name: t for name, t in adapter(step).items() if "lora_A" in name}
                    save_file(weights, directory / "model.safetensors")
                    (directory / "config.json").write_text("{}")
                else:
                    save_file(adapter(step, rank), directory / "adapter_model.safetensors")
                    config = json.dumps({"r": rank, "lora_alpha": 4})
                    (directory / "adapter_config.json").write_text(config)
                save_file({}, directory / "optimizer.safetensors")
                save_file({"generator": torch.zeros(2)}, directory / "rng.safetensors")

            CheckpointStore(run / "checkpoints").write(step, fill, {**about, **manifest})
        rows = []
        for step in steps:
            paid = {"costs__gpu": 0.5, "costs__all": 0.5, "costs__cum__all": 0.5 * step}
            rows.append(row(2 * step - 1, step, "train", reward__mean=0.5, **paid))
            rows.append(row(2 * step, step, "val", val__reward=REWARDS[step]))
        (run / "history.jsonl").write_bytes(b"".join(rows))
        (run / "model.json").write_text(
            json.dumps({"project": "demo", "name": name, "base_model": "base", "config": {"a": 1}})
        )
        return run

    return write


@pytest.fixture
def command(tmp_path, capsys):
    def run(*arguments, status=0):
        assert main(["checkpoints", *map(str, arguments), "--dir", str(tmp_path)]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


def answered(command, *arguments):
    return json.loads(command(*arguments, "--json"))


def steps(run):
    return CheckpointStore(run / "checkpoints").steps()


def test_list_shows_values_sizes_and_what_was_set_aside(written, command):
    run = written()
    (run / "checkpoints" / "0006").rename(run / "checkpoints" / "0006.abandoned")
    damaged = run / "checkpoints" / "0003" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = answered(command, "list", "one", "--verify")
    rows = {each["step"]: each for each in found["checkpoints"]}
    assert [*rows] == [1, 2, 3, 4, 5, None]
    assert rows[2]["value"] == 0.9
    assert rows[2]["bytes"] > 500
    assert rows[2]["note"] == "best, verified"
    assert rows[5]["note"] == "newest, verified"
    assert "optimizer.safetensors has another size" in rows[3]["note"]
    assert rows[None]["note"] == "0006.abandoned"
    assert "best" in command("list", "one")


def test_best_is_a_step_and_its_directory(written, command):
    run = written()
    found = answered(command, "best", "one")
    assert (found["step"], found["path"]) == (2, str(run / "checkpoints" / "0002"))
    assert "has a value of 'val/other'" in command("best", "one", "--metric", "val/other", status=2)


def test_prune_keeps_the_newest_and_the_best(written, command):
    run = written()
    assert answered(command, "prune", "one", "--dry-run")["kept"] == [2, 3, 4, 5, 6]
    assert "would delete step 1 of demo/one" in command("prune", "one", "--dry-run")
    assert "needs a confirmation" in command("prune", "one", status=2)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert answered(command, "prune", "one", "--yes")["deleted"] == [1]
    answered(command, "prune", "one", "--recent", "0", "--top", "1", "--yes")
    assert steps(run) == [2, 6]
    assert "nothing was deleted" in command("prune", "one", "--every", "2", "--yes")


def test_prune_keeps_the_reference_of_a_penalty_and_deletes_what_was_set_aside(written, command):
    run = written(reference_step=3)
    (run / "checkpoints" / "0001").rename(run / "checkpoints" / "0001.corrupted")
    command("prune", "one", "--recent", 1, "--top", 0, "--set-aside", "--yes")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0003", "0006"]


def test_a_run_in_use_is_not_pruned(written, command):
    run = written()
    held = os.open(run / "history.jsonl", os.O_RDONLY)
    take_lock(held)
    try:
        assert "demo/one is in use" in command("prune", "one", "--yes", status=2)
    finally:
        os.close(held)


def test_a_fork_has_its_parents_checkpoint_and_does_not_count_its_costs(written, command):
    parent = written()
    (parent / "sft.json").write_text('{"plans": []}')
    made = answered(command, "fork", "one", "two", "--step", "3")
    assert [p["run"] for p in made["parents"]] == ["demo/one"]
    assert made["parents"][0]["costs"]["all"] == pytest.approx(1.5)
    fork = art.open_run(parent.with_name("two"))
    assert steps(fork.path) == [3]
    assert (fork.path / "sft.json").read_text() == '{"plans": []}'
    assert CheckpointStore(fork.path / "checkpoints").read(3).step == 3
    assert fork.costs().total == {}
    assert fork.model()["config"] == {"a": 1}
    assert fork.status() == "fork"
    assert "at step 3, which had cost $1.5000 (not counted here)" in command("list", "two")
    command("prune", "one", "--recent", 1, "--top", 0, "--yes")
    assert CheckpointStore(fork.path / "checkpoints").read(3).step == 3


def test_a_fork_is_refused_where_it_cannot_be_made(written, command):
    written()
    assert "no checkpoint of step 9; there are: 1, 2" in command("fork", "one@9", "x", status=2)
    manifest = art.open_run(written("afar")).checkpoints()[6] / "manifest.json"
    manifest.write_text(json.dumps({"step": 6}))
    assert "has no weights on this machine" in command("fork", "afar", "x", status=2)
    assert "demo/one exists already" in command("fork", "one", "one", status=2)
    assert "can't be a directory's name" in command("fork", "one", "a/b", status=2)


def test_a_merge_is_the_average_of_the_changes(written, command):
    run = written()
    command("merge", "one@1", "one@2", "--name", "soup", "--rank", 4)
    one, two = (deltas(run / "checkpoints" / f"000{n}") for n in (1, 2))
    both = deltas(run.with_name("soup") / "checkpoints" / "0002")
    for name in LAYERS:
        assert torch.allclose(both[name], (one[name] + two[name]) / 2, atol=1e-5)
    found = CheckpointStore(run.with_name("soup") / "checkpoints").read(2)
    assert (found.manifest["lora_rank"], found.manifest["lora_alpha"]) == (4, 4)
    assert not (found.path / "optimizer.safetensors").exists()


def test_a_merge_in_a_lower_rank_states_what_it_leaves_out(written, command):
    run = written()
    assert "leaves out" in command("merge", "one@1", "one@2", "--name", "soup")
    same = command("merge", "one@1", "one@1", "--name", "same", "--weights", "3,1")
    assert "leaves out" not in same
    one = deltas(run / "checkpoints" / "0001")
    for name, delta in deltas(run.with_name("same") / "checkpoints" / "0001").items():
        assert torch.allclose(delta, one[name], atol=1e-5)


def test_all_weights_are_averaged(written, command):
    run = written(full=True)
    command("merge", "one@1", "one@2", "--name", "soup", "--weights", "1,3")
    found = load_file(run.with_name("soup") / "checkpoints" / "0002" / "model.safetensors")
    for name, weight in found.items():
        assert torch.allclose(weight, adapter(1)[name] / 4 + adapter(2)[name] * 3 / 4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["one@1"], "an average needs two"),
        (["one@1", "one@2", "--weights", "1"], "--weights 1 are not 2 numbers"),
        (["one@1", "one@2", "--weights", "1,x"], "are not 2 numbers"),
        (["one@1", "other@1"], "differ in base_fingerprint"),
        (["one@1", "whole@1"], "differ in full_finetune"),
    ],
)
def test_what_has_no_average_is_refused(written, command, arguments, told):
    run = written(steps=[1, 2])
    written("other", steps=[1], base_fingerprint="0" * 64)
    written("whole", steps=[1], full=True)
    assert told in command("merge", *arguments, "--name", "soup", status=2)
    assert not run.with_name("soup").exists()
    assert sorted(p.name for p in run.parent.iterdir()) == ["one", "other", "whole"]


@pytest.mark.parametrize("full", [False, True], ids=["LoRA", "whole"])
def test_diff_is_the_norm_of_the_change_of_each_layer(written, command, full):
    run = written(full=full)
    found = answered(command, "diff", "one@1", "one@2", "--modules")
    if full:
        one, two = (
            load_file(run / "checkpoints" / f"000{n}" / "model.safetensors") for n in (1, 2)
        )
    else:
        one, two = (deltas(run / "checkpoints" / f"000{n}") for n in (1, 2))
    wanted = {name: float(torch.linalg.norm(two[name] - one[name])) for name in one}
    assert {each["layer"]: each["change"] for each in found["layers"]} == pytest.approx(wanted)
    layers = {each["layer"]: each for each in answered(command, "diff", "one@1", "one@2")["layers"]}
    assert len(layers) == 2
    assert found["change"] == pytest.approx(sum(v * v for v in wanted.values()) ** 0.5)
    assert answered(command, "diff", "one@1", "one@1")["change"] == 0.0
    assert "all layers" in command("diff", "one@1", "one@2")


def test_diff_of_adapters_of_other_ranks(written, command):
    run, other = written(), written("other", steps=[1], rank=3)
    found = answered(command, "diff", "one@1", "other@1", "--modules")
    one, two = (deltas(each / "checkpoints" / "0001") for each in (run, other))
    wanted = {name: float(torch.linalg.norm(two[name] - one[name])) for name in one}
    assert {each["layer"]: each["change"] for each in found["layers"]} == pytest.approx(wanted)
