"""The contracts hold for what keeps to them, and fail for what does not."""

import importlib
import sys
from textwrap import dedent

import attrs
import pytest

import art_core as art
import art_core.testing
from art_core.testing import backend as kit
from art_core.testing.backend import BackendContract
from art_core.testing.echo import EchoBackend
from art_core.testing.plugin import PluginContract


@pytest.fixture
def contract(tmp_path, monkeypatch):
    """The contract of a plugin module with some code, installed."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(code):
        (tmp_path / "art_contract.py").write_text("import art_core as art\n" + dedent(code))
        info = tmp_path / "art_contract-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: art-contract\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[art_core]\ncontract = art_contract\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        made = PluginContract()
        made.module = "art_contract"
        return made

    yield install
    sys.modules.pop("art_contract", None)


GOOD = """
    @art.hookimpl
    def art_backends():
        return [art.BackendSpec(name="good", create=dict, summary="trains")]
"""
LOSS = """
    @art.hookimpl
    def art_losses():
        return [art.LossSpec(name="ppo", create=lambda: max)]
"""
COMMAND = """
    @art.hookimpl
    def art_commands():
        return [art.CommandSpec(name="do this", summary="x", create=bool, run=lambda *_: [])]
"""
CHECKS = [name for name in dir(PluginContract) if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_plugin_keeps_its_contract(contract, check):
    getattr(contract(GOOD), check)()


@pytest.mark.parametrize(
    ("code", "check"),
    [
        ("import pydantic\n", "importing_it_loads_nothing_heavy"),
        ("", "its_hooks_are_spelt_as_the_core_spells_them"),
        ("@art.hookimpl\ndef art_backend(): ...", "its_hooks_are_spelt_as_the_core_spells_them"),
        (GOOD.replace('"good"', '"Too Good"'), "its_specs_are_well_formed"),
        (GOOD.replace('"trains"', '""'), "its_specs_are_well_formed"),
        (LOSS, "its_specs_are_well_formed"),
        (COMMAND, "its_specs_are_well_formed"),
        (
            """
            @art.hookimpl
            def art_metrics():
                return [art.MetricSpec(key="reward/mean", unit="apples", help="")]
            """,
            "its_metrics_join_the_catalogue",
        ),
    ],
)
def test_a_plugin_that_does_not_keep_its_contract_fails(contract, code, check):
    broken = contract(code)
    with pytest.raises((AssertionError, art.PluginError)):
        getattr(broken, f"test_{check}")()


def test_a_module_without_an_entry_point_is_not_installed():
    made = PluginContract()
    made.module = "art_core.plugins.builtin"
    with pytest.raises(AssertionError):
        made.test_it_is_installed_as_an_entry_point()


class StandsStill(EchoBackend):
    async def step(self, model):
        return 0


class ReportsOldNames(EchoBackend):
    async def train(self, model, groups, **options):
        result = await super().train(model, groups, **options)
        return attrs.evolve(result, metrics={"train/reward": 1.0})


class ServesOldWeights(EchoBackend):
    def step_of(self, name):
        return None if super().step_of(name) is None else 0


class AnswersAnyName(EchoBackend):
    def step_of(self, name):
        return super().step_of(name) or 0


class Forgets(EchoBackend):
    async def train(self, model, groups, **options):
        return await super().train(model, groups, **options | {"save_checkpoint": False})


class DeletesEverything(EchoBackend):
    async def delete_checkpoints(self, model, keep):
        return await super().delete_checkpoints(model, ())


class IgnoresOptions(EchoBackend):
    async def train(self, model, groups, **options):
        return await super().train(model, groups)


class Free(EchoBackend):
    async def train(self, model, groups, **options):
        return art.TrainResult(step=1)


class StopsWithoutSpread(EchoBackend):
    async def train(self, model, groups, **options):
        raise art.BackendError("nothing to train")


class ListsNothing(EchoBackend):
    def names(self):
        return []


class ClosesOnce(EchoBackend):
    async def close(self):
        self._server.close()
        self._server = None


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (ListsNothing, "a_registered_model_is_listed_by_its_endpoint"),
        (AnswersAnyName, "an_unknown_model_name_is_not_found"),
        (StandsStill, "training_advances_the_step_and_reports_canonical_metrics"),
        (ReportsOldNames, "training_advances_the_step_and_reports_canonical_metrics"),
        (ServesOldWeights, "the_newest_weights_are_served_and_a_second_step_follows"),
        (Forgets, "a_new_backend_goes_on_from_the_last_checkpoint"),
        (DeletesEverything, "checkpoints_are_deleted_but_for_those_to_keep_and_the_newest"),
        (IgnoresOptions, "an_unknown_option_is_refused_and_nothing_is_trained"),
        (Free, "what_training_used_is_charged"),
        (StopsWithoutSpread, "groups_without_spread_advance_the_step_too"),
        (ClosesOnce, "a_backend_may_be_closed_twice"),
    ],
)
async def test_a_backend_that_does_not_keep_its_contract_fails(tmp_path, broken, check):
    def model():
        return art.TrainableModel(
            name="agent",
            project="p",
            base_model="base",
            base_path=tmp_path,
            sinks=[],
            plugins=kit.plugins_with_prices(),
        )

    arguments = [broken, model]
    test = getattr(BackendContract(), f"test_{check}")
    if "make_groups" in test.__annotations__:
        arguments.append(kit.attempts)
    with pytest.raises((AssertionError, pytest.fail.Exception, art.ArtError, AttributeError)):
        await test(*arguments)


def test_the_kit_is_imported_without_pytest_too(monkeypatch):
    monkeypatch.delitem(sys.modules, "pytest")
    importlib.reload(art_core.testing)
    assert "pytest" not in sys.modules
