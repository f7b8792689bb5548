"""A right plugin module, and broken ones that differ from it by one fault each."""

from __future__ import annotations

import sys
from textwrap import dedent
from typing import ClassVar

import pytest
from mutants.runner import contracts_of

from art_core.testing.plugin import PluginContract

RIGHT = """
import art_core as art

@art.hookimpl
def art_backends():
    make = "art_core.testing.echo:EchoBackend"
    other = art.BackendSpec(name="other", create=dict, summary="is a dict")
    return [art.BackendSpec(name="mutant", create=make, summary="trains nothing"), other]

@art.hookimpl
def art_sinks():
    return [art.SinkSpec(name="mutant", create=dict, summary="rows into a dict")]

@art.hookimpl
def art_commands():
    return [art.CommandSpec(name="mutant", summary="does nothing", create=bool, run=print)]

@art.hookimpl
def art_losses():
    return [art.LossSpec(name="mutant", create=lambda: max)]

@art.hookimpl
def art_environments():
    play = "art_core.testing.scripts:always"
    return [art.EnvironmentSpec(name="mutant/game", target=play, summary="plays nothing")]

@art.hookimpl
def art_metrics():
    return [art.MetricSpec(key="mutant/rows", unit="rows", help="rows that it wrote")]
"""


class RightPlugin:
    """The right module; a fault replaces a part of its text, or adds to it."""

    old = new = added = ""
    installed = True

    @classmethod
    def text(cls):
        assert cls.old in RIGHT
        return RIGHT.replace(cls.old, cls.new) + dedent(cls.added)


class TestRight(PluginContract):
    plugin: ClassVar = RightPlugin
    heavy = ("heavy_in_tests", *PluginContract.heavy)

    @pytest.fixture(autouse=True)
    def install(self, tmp_path, monkeypatch):
        """Put the module on the path, with a distribution that names it as an entry point."""
        self.module = f"art_{self.plugin.__name__.lower()}"
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "heavy_in_tests.py").touch()
        (tmp_path / f"{self.module}.py").write_text(self.plugin.text())
        info = tmp_path / "mutant-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mutant\nVersion: 1\n")
        if self.plugin.installed:
            (info / "entry_points.txt").write_text(f"[art_core]\nmutant = {self.module}\n")
        yield
        sys.modules.pop(self.module, None)


class IsNotInstalled(RightPlugin):
    """No entry point names the module."""

    installed = False


class ImportsHeavyModules(RightPlugin):
    """Importing it imports a heavy module."""

    added = "import heavy_in_tests"


class HooksImportHeavyModules(RightPlugin):
    """A hook that offers specs imports a heavy module."""

    old, new = "def art_sinks():", "def art_sinks():\n    import heavy_in_tests"


class Prints(RightPlugin):
    """Importing it prints."""

    added = "print('welcome')"


class WritesAFile(RightPlugin):
    """Importing it writes a file."""

    added = "open('mutant.log', 'w').close()"


class StartsAThread(RightPlugin):
    """Importing it starts a thread."""

    added = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    """


class SetsAVariable(RightPlugin):
    """Importing it sets an environment variable."""

    added = "import os; os.environ['TOKENIZERS_PARALLELISM'] = 'false'"


class SetsUpLogging(RightPlugin):
    """Importing it adds a handler to the root logger."""

    added = "import logging; logging.basicConfig()"


class HasNoHook(RightPlugin):
    """It has no hook."""

    old, new = RIGHT, ""


class MisspellsAHook(RightPlugin):
    """A hook has a name that does not exist."""

    old, new = "art_sinks", "art_sink"


class ForgetsTheMark(RightPlugin):
    """A hook is not marked with `hookimpl`."""

    old, new = "@art.hookimpl\ndef art_sinks", "def art_sinks"


class TakesUnknownArguments(RightPlugin):
    """A hook asks for an argument that the core does not give."""

    old, new = "art_sinks()", "art_sinks(model)"


class OffersTheWrongType(RightPlugin):
    """It offers a sink as a backend."""

    old, new = "[art.BackendSpec(name", "[art.SinkSpec(name"


class OffersAClass(RightPlugin):
    """It offers a loss that has no spec."""

    old, new = 'art.LossSpec(name="mutant", create=lambda: max)', "max"


class OffersANameTwice(RightPlugin):
    """Two of its sinks have the same name."""

    old = 'art.SinkSpec(name="mutant", create=dict, summary="rows into a dict")'
    new = f"{old}, {old}"


class HasASpaceInAName(RightPlugin):
    """A name has a space."""

    old, new = 'art.SinkSpec(name="mutant"', 'art.SinkSpec(name="my mutant"'


class HasAnUpperCaseName(RightPlugin):
    """A name has upper-case letters."""

    old, new = 'art.BackendSpec(name="mutant"', 'art.BackendSpec(name="Mutant"'


class HasNoSummary(RightPlugin):
    """A summary is empty."""

    old, new = "rows into a dict", ""


class HasALongSummary(RightPlugin):
    """A summary has two lines."""

    old, new = "rows into a dict", "rows\\ninto a dict"


class NamesNoModule(RightPlugin):
    """The module that makes its backend does not exist."""

    old, new = "art_core.testing.echo:", "art_core_echo:"


class TakesAPresetsName(RightPlugin):
    """Its loss has the name of a preset."""

    old, new = 'art.LossSpec(name="mutant"', 'art.LossSpec(name="ppo"'


class HasBrokenArguments(RightPlugin):
    """A command's arguments can't be given to a parser."""

    old, new = "create=bool, run", "create=lambda parser: parser.add_argument(1), run"


class RedefinesAMetric(RightPlugin):
    """It defines a metric of the core in another way."""

    old, new = 'key="mutant/rows"', 'key="reward/mean"'


SPELT = "test_its_hooks_are_spelt_as_the_core_spells_them"
TYPED = "test_its_names_can_be_typed_into_a_command"
TYPES = "test_its_hooks_offer_specs_of_the_right_type"
SUMMARY = "test_its_summaries_fit_into_a_table"
TAKEN = "test_its_losses_and_commands_can_be_taken"
PROCESS = "test_importing_it_changes_no_setting_of_the_process"
FAULTS = {
    IsNotInstalled: "test_it_is_installed_as_an_entry_point",
    ImportsHeavyModules: "test_importing_it_loads_nothing_heavy",
    HooksImportHeavyModules: "test_asking_for_its_specs_loads_nothing_heavy",
    Prints: "test_importing_it_prints_nothing",
    WritesAFile: "test_importing_it_writes_no_file",
    StartsAThread: "test_importing_it_starts_no_thread",
    SetsAVariable: PROCESS,
    SetsUpLogging: PROCESS,
    HasNoHook: SPELT,
    MisspellsAHook: SPELT,
    ForgetsTheMark: SPELT,
    TakesUnknownArguments: SPELT,
    OffersTheWrongType: TYPES,
    OffersAClass: TYPES,
    OffersANameTwice: "test_two_specs_do_not_share_a_name",
    HasASpaceInAName: TYPED,
    HasAnUpperCaseName: TYPED,
    HasNoSummary: SUMMARY,
    HasALongSummary: SUMMARY,
    NamesNoModule: "test_what_its_specs_name_can_be_imported",
    TakesAPresetsName: TAKEN,
    HasBrokenArguments: TAKEN,
    RedefinesAMetric: "test_its_metrics_join_the_catalogue",
}
globals().update(contracts_of(TestRight, FAULTS, "plugin"))
