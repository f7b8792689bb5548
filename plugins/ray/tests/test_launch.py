"""`art launch`: tasks of SkyPilot, manifests of KubeRay, and prices. Nothing is launched."""

from __future__ import annotations

import importlib.util
import json
import stat
import subprocess
from importlib.metadata import version

import pytest
import yaml

import art_core as art
from art_core.cli.main import main
from art_ray.launch import kuberay, skypilot
from art_ray.launch.command import as_yaml
from art_ray.launch.order import Order, accelerators
from art_ray.launch.prices import hourly_price


class FourDollars:
    @art.hookimpl
    def art_gpu_rate(self, device):
        return 4.0 if device in ("H100 80GB HBM3", "MI300X") else None


@pytest.fixture
def plugins():
    made = art.Plugins()
    made.register(FourDollars(), "prices")
    return made


def order(**given):
    return Order(**{"cloud": "aws", "gpus": ("H100", 8), **given})


def test_a_dry_run_prints_a_task_that_yaml_reads_and_its_price(capsys):
    assert main(["launch", "--cloud", "aws", "--gpus", "H100:8", "--hours", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    task = yaml.safe_load(text)
    assert task["resources"] == {"infra": "aws", "accelerators": "H100:8", "disk_size": 256}
    assert "art serve --host 127.0.0.1 --port 8080" in task["run"]
    assert "# price per hour: $31.92 (RunPod" in text  # 8 x $3.99 of the dated table
    assert "# at most 2 hours and 10 minutes: $69.16" in text


def test_a_program_reads_the_same_task_as_json(capsys):
    words = ["launch", "--cloud", "gcp", "--what", "ray", "--gpus", "L4:2", "--nodes", "3"]
    assert main([*words, "--region", "us-central1", "--spot", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["document"]["num_nodes"] == 3
    assert found["document"]["resources"]["infra"] == "gcp/us-central1"
    assert found["document"]["resources"]["use_spot"] is True
    assert found["usd_per_hour"] == pytest.approx(2 * 3 * 0.799)
    assert found["launched"] is False


def test_money_is_time_from_the_order_to_the_end_of_the_machines(capsys):
    words = ["launch", "--cloud", "aws", "--gpus", "H100:8", "--max-usd", "31.92", "--dry-run"]
    assert main(words) == 0  # an hour of 8 x $3.99
    text = capsys.readouterr().out
    assert "$31.92 buys 60 minutes: 10 to start, 40 of setup and work, 10 until they" in text
    assert "LEFT=$(( 2400 + " in text
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["most_usd"] == pytest.approx(31.92 * 50 / 60)  # without the start
    assert main([*words, "--hours", "0.5"]) == 0
    assert "LEFT=$(( 1800 + " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "H100:8", "--max-usd", "10"], "$10.00 buys 19 minutes, of which 20 are"),
        (["--gpus", "H100:8", "--max-usd", "nan"], "of which 20 are without work"),
        (["--gpus", "TPU-v9:1", "--max-usd", "10"], "the price of these machines is not known"),
        (
            ["--cloud", "kubernetes", "--what", "ray", "--gpus", "H100:8", "--max-usd", "99"],
            "a RayCluster of Kubernetes runs until it is deleted",
        ),
    ],
)
def test_money_that_limits_nothing_is_refused(capsys, words, message):
    assert main(["launch", "--cloud", "aws", *words, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_launch_ends_when_its_time_is_over_counted_from_the_setup(tmp_path):
    """The script of `art serve`, with an `art` that never ends."""
    bin_dir = tmp_path / "art-env" / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "art").write_text("#!/bin/bash\nexec sleep 60\n")
    (bin_dir / "art").chmod(0o755)
    script = skypilot.task_of(order(hours=2 / 3600))["run"]

    def ended():
        given = {"env": {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, "text": True}
        done = subprocess.run(["bash", "-c", script], **given, capture_output=True, check=False)
        return done.returncode, done.stderr

    began = tmp_path / "art-began"
    began.write_text("1\n")
    assert ended() == (1, "the hours of this launch are over\n")
    began.write_text(subprocess.check_output(["date", "+%s"], text=True))
    assert ended()[0] in (1, 124)  # timeout's own status; 1 if both seconds passed before


def test_options_after_two_hyphens_go_to_art_serve(capsys):
    words = ["--dry-run", "--", "--backend", "local", "-o", "lora_rank=32"]
    assert main(["launch", "--cloud", "lambda", *words]) == 0
    task = yaml.safe_load(capsys.readouterr().out)
    assert task["run"].endswith("--port 8080 --backend local -o lora_rank=32\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "My Cluster"}, "no name for a cluster"),
        ({"nodes": 2}, "art serve runs on one machine"),
        ({"command": "python x.py"}, "art serve is the command"),
        ({"nodes": 0}, "must be positive"),
        ({"hours": 0.0}, "must be positive"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(art.ConfigError, match=message):
        order(**given)


def test_gpus_are_a_name_and_a_number():
    assert accelerators("H100:8") == ("H100", 8)
    assert accelerators("A100-80GB") == ("A100-80GB", 1)
    for text in ("H100:0", "8 x H100", "H100:x"):
        with pytest.raises(art.ConfigError, match="names no GPUs"):
            accelerators(text)


@pytest.mark.parametrize("what", ["serve", "ray"])
def test_the_scripts_of_a_task_are_valid_shell(what):
    given = {"what": what} | ({"nodes": 2, "command": "echo 'a b'"} if what == "ray" else {})
    task = skypilot.task_of(order(**given))
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_head_runs_the_command_and_ends_with_its_status(tmp_path):
    """The script of a cluster, with a `ray` that only notes how it was called."""
    ray = tmp_path / "ray"
    ray.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n[ "$1" = start ] && exec sleep 60\nexit 0\n'
    )
    ray.chmod(ray.stat().st_mode | stat.S_IXUSR)
    script = skypilot.task_of(order(what="ray", nodes=2, command="echo at $RAY_ADDRESS; exit 3"))
    text = script["run"].replace("~/art-env/bin", str(tmp_path))
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "0"}
    done = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": "/usr/bin:/bin", **env},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "at 10.0.0.1:6379\n")
    assert "start --head --port 6379 --block" in (tmp_path / "calls").read_text()


def test_a_price_counts_the_gpus_of_all_machines(plugins):
    assert hourly_price(order(what="ray", nodes=2), plugins).usd == 64.0
    of_kubernetes = order(gpus=("NVIDIA-H100-80GB-HBM3", 1))
    assert hourly_price(of_kubernetes, plugins).usd == 4.0
    assert hourly_price(order(gpus=("MI300X", 2)), plugins).usd == 8.0


def test_a_gpu_without_a_price_and_a_machine_without_gpus_say_so(plugins):
    assert hourly_price(order(gpus=("TPU-v9", 1)), plugins).source == "no price book has 'TPU-v9'"
    assert hourly_price(order(gpus=None), plugins).usd is None


def test_a_ray_cluster_of_kubernetes_keeps_the_model_off_its_head():
    manifest = kuberay.manifest_of(order(what="ray", nodes=2, cloud="kubernetes"))
    spec = manifest["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert spec["rayVersion"] == version("ray")
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    pod = group["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["image"].startswith(f"rayproject/ray:{version('ray')}-py3")
    assert yaml.safe_load(as_yaml(manifest)) == manifest
    assert "&id" not in as_yaml(manifest)


FIELDS = {
    "RayCluster": {"headGroupSpec", "workerGroupSpecs", "rayVersion"},
    "RayJob": {
        "entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "activeDeadlineSeconds", "rayClusterSpec",
    },
    "head": {"rayStartParams", "template"},
    "workers": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
    },
}  # fmt: skip
"""Fields of KubeRay's types (ray.io/v1 of KubeRay 1.4) that a manifest has; others are refused."""


@pytest.mark.parametrize("command", [None, "python train.py"])
def test_a_manifest_has_fields_of_kuberays_types_only(command):
    manifest = kuberay.manifest_of(order(what="ray", cloud="kubernetes", command=command))
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    assert set(spec) == FIELDS[manifest["kind"]]
    cluster = spec.get("rayClusterSpec", spec)
    assert set(cluster) == FIELDS["RayCluster"]
    assert set(cluster["headGroupSpec"]) == FIELDS["head"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == FIELDS["workers"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_command_on_kubernetes_is_a_job_whose_cluster_ends_with_it():
    given = {"what": "ray", "cloud": "kubernetes", "command": "python train.py", "hours": 2.0}
    spec = kuberay.manifest_of(order(**given))["spec"]
    assert (spec["entrypoint"], spec["shutdownAfterJobFinishes"]) == ("python train.py", True)
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (7200, 600)
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"pip": [f"art-ray=={version('art-ray')}"]}


def test_a_manifest_goes_to_kubectl_and_is_deleted_by_name(tmp_path, monkeypatch, capsys):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat >> {tmp_path}/given\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = ["launch", "--cloud", "kubernetes", "--what", "ray"]
    assert main([*words, "--name", "four"]) == 0
    assert json.loads((tmp_path / "given").read_text())["metadata"] == {"name": "four"}
    assert main([*words, "--down", "four"]) == 0
    assert (tmp_path / "calls").read_text().splitlines() == [
        "apply --filename -",
        "delete rayjob.ray.io four --ignore-not-found",
        "delete raycluster.ray.io four --ignore-not-found",
    ]
    kubectl.write_text("#!/bin/sh\necho no such cluster >&2\nexit 1\n")
    assert main([*words, "--down", "four"]) == 2
    assert "kubectl delete failed: no such cluster" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("sky") is not None, reason="SkyPilot is installed")
def test_without_skypilot_launching_names_what_to_install(capsys):
    assert main(["launch", "--cloud", "aws"]) == 2
    assert "pip install skypilot" in capsys.readouterr().err
    assert main(["launch", "--cloud", "aws", "--down", "art"]) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"gpus": ("H100", 8)},
        {"hours": 0.7},
        {"what": "ray", "nodes": 4, "command": "python train.py", "spot": True, "cpus": 8},
        {"cloud": "kubernetes", "image": "example/art:1", "memory_gb": 64},
    ],
)
def test_skypilot_reads_the_tasks(given):
    pytest.importorskip("sky", reason="needs SkyPilot: pip install skypilot")
    task = skypilot.validated(skypilot.task_of(order(**given)))
    assert task.num_nodes == given.get("nodes", 1)
