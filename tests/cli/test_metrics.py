from __future__ import annotations

import json

import art_core as art


class Loud:
    @art.hookimpl
    def art_metrics(self):
        return [art.MetricSpec(key="noise/level", unit="dB", help="how loud", combine="last")]


def test_the_table_tells_how_each_metric_behaves(art_command):
    lines = {line.split()[0]: line for line in art_command("metrics").splitlines() if line}
    assert "sum, cumulative" in lines["costs/gpu"]
    assert "derived" in lines["costs/all"]
    assert "higher" in lines["reward/mean"]
    assert lines["train/reward"].split() == ["train/reward", "reward/mean"]


def test_a_plugin_s_metrics_are_in_it(art_command):
    assert "how loud" in art_command("metrics", plugins={"loud": Loud()})


def test_as_json_it_is_the_whole_catalogue(art_command):
    document = json.loads(art_command("metrics", "--json", plugins={"loud": Loud()}))
    assert document["version"] == 1
    assert document["aliases"]["train/reward"] == "reward/mean"
    specs = {spec["key"]: spec for spec in document["metrics"]}
    assert specs["noise/level"] == {
        "key": "noise/level",
        "unit": "dB",
        "help": "how loud",
        "combine": "last",
        "cumulative": False,
        "direction": None,
        "derived": False,
    }
