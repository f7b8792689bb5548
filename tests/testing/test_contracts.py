"""The contracts hold for what keeps to them, and fail for what does not."""

import importlib
import sys
import threading
from pathlib import Path
from textwrap import dedent

import attrs
import pytest

import art_core as art
import art_core.testing
from art_core.testing import backend as kit
from art_core.testing.backend import BackendContract
from art_core.testing.echo import EchoBackend
from art_core.testing.plugin import PluginContract
from art_core.testing.sink import SinkContract

sys.path.append(str(Path(__file__).parent))
from sinks_to_try import ROWS, FileSink, MemorySink, read


class TestFileSink(SinkContract):
    factory = "sinks_to_try:file_sink"

    @pytest.fixture(autouse=True)
    def others_find_the_sink(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    @pytest.fixture
    def make_sink(self):
        return FileSink

    @pytest.fixture
    def read_back(self):
        def rows(run):
            return [(r["step"], r["split"], r["metrics"]) for r in read(run.run_dir / "rows")]

        return rows


class TestMemorySink(SinkContract):
    keeps_split = False
    keeps_empty_rows = False

    @pytest.fixture
    def make_sink(self):
        return MemorySink

    @pytest.fixture
    def read_back(self):
        return lambda run: [(r.step, None, r.metrics) for _, r in sorted(ROWS[run.run_dir].items())]


class TestFileSinkBySeqs(SinkContract):
    @pytest.fixture
    def make_sink(self):
        return FileSink

    def received(self, run):
        return [line["seq"] for line in read(run.run_dir / "rows")]


class TestSinkThatCannotBeReadBack(SinkContract):
    @pytest.fixture
    def make_sink(self):
        return FileSink


@pytest.fixture
def run(tmp_path):
    return art.RunInfo(project="p", name="m", run_dir=tmp_path)


@pytest.mark.parametrize(
    ("flaw", "check"),
    [
        ("repeats", "a_batch_that_comes_again_is_kept_once"),
        ("repeats", "rows_that_come_again_to_a_new_sink_are_kept_once"),
        ("ascii", "keys_hold_any_letters"),
        ("parents", "a_key_may_begin_with_another"),
        ("32 bits", "a_step_may_be_nought_or_very_large"),
    ],
)
def test_a_sink_with_a_flaw_breaks_its_contract(run, flaw, check):
    def read_back(run):
        return [(r["step"], r["split"], r["metrics"]) for r in read(run.run_dir / "rows")]

    test = getattr(TestFileSink(), f"test_{check}")
    with pytest.raises(AssertionError):
        test(lambda: FileSink(frozenset({flaw})), read_back, run)


def test_a_sink_that_is_too_slow_breaks_its_contract(run, monkeypatch):
    monkeypatch.setattr(SinkContract, "seconds_for_10_000_rows", 0.0)
    with pytest.raises(AssertionError):
        TestFileSink().test_ten_thousand_rows_arrive(MemorySink, None, run)


def test_a_sink_that_prints_breaks_its_contract(run, capfd):
    class Prints(FileSink):
        def close(self, run):
            print("done")

    with pytest.raises(AssertionError):
        TestFileSink().test_it_prints_nothing_where_results_are_printed(Prints, run, capfd)


def test_a_sink_that_litters_breaks_its_contract(run, tmp_path_factory, monkeypatch):
    class Litters(FileSink):
        def close(self, run):
            Path("left.txt").touch()

    with pytest.raises(AssertionError):
        TestFileSink().test_it_leaves_the_working_directory_clean(
            Litters, run, tmp_path_factory, monkeypatch
        )


def test_a_sink_that_leaves_a_thread_breaks_its_contract(run):
    done = threading.Event()

    class Lingers(FileSink):
        def close(self, run):
            threading.Thread(target=done.wait).start()

    with pytest.raises(AssertionError):
        TestFileSink().test_it_leaves_no_thread_that_keeps_the_process_alive(Lingers, run)
    done.set()


def test_a_sink_that_fails_on_another_thread_breaks_its_contract(run, monkeypatch):
    class Fails(FileSink):
        def close(self, run):
            raise OSError("down")

    monkeypatch.setattr("art_core.testing.sink.kit.CLOSE_SECONDS", 0.1)
    with pytest.raises(AssertionError):
        TestFileSink().test_it_works_on_the_threads_of_the_core(Fails, None, run)


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
