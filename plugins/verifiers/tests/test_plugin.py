"""The plugin: its module, and the installed packages that it offers."""

import pytest

import art_core as art
from art_core.testing.echo import EchoBackend
from art_core.testing.plugin import PluginContract
from art_verifiers import plugin


class TestPlugin(PluginContract):
    module = "art_verifiers.plugin"
    heavy = (*PluginContract.heavy, "verifiers", "datasets")


async def test_an_installed_package_is_offered_and_played(install, tmp_path):
    install("sums-env")
    install("broken-env", "import no_such_module")
    offered = {spec.name: spec for spec in plugin.art_environments()}
    assert {"verifiers/broken-env", "verifiers/sums-env"} <= set(offered)
    assert offered["verifiers/sums-env"].summary == "sums"
    with pytest.raises(art.PluginError, match="'verifiers/broken-env' can't be loaded"):
        offered["verifiers/broken-env"].load()
    spec = offered["verifiers/sums-env"]
    model = art.TrainableModel(
        name="m", project="p", base_model="echo-base", base_path=tmp_path, sinks=[]
    )
    await model.register(EchoBackend(reply=lambda messages, step: "5"))
    trajectory = await spec.load()(model, spec.tasks()[0])
    assert trajectory.reward == 1.0
    await model.close()
    await model.backend.close()
