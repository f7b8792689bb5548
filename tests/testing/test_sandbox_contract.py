"""The contract of sandboxes finds sandboxes that differ from a right one by one fault."""

import asyncio
import sys
from typing import ClassVar

import attrs
import pytest

import art_core as art
from art_core.environments import processes
from art_core.environments.processes import SubprocessSandbox
from art_core.testing.sandbox import SandboxContract


class Changed(SubprocessSandbox):
    """A right sandbox; a fault changes what goes in or what comes out."""

    def limits(self, limits):
        return limits

    def result(self, result):
        return result

    async def run(self, command, *, files=None, stdin="", limits=None, collect=()):
        limits = self.limits(limits or art.SandboxLimits())
        given = {"files": files, "stdin": stdin, "collect": collect} | self.changes()
        return self.result(await super().run(command, limits=limits, **given))

    def changes(self):
        return {}


def evolving(**changes):
    return type("Fault", (Changed,), {"result": lambda self, r: attrs.evolve(r, **changes)})


def limiting(**changes):
    return type("Fault", (Changed,), {"limits": lambda self, r: attrs.evolve(r, **changes)})


def giving(**changes):
    return type("Fault", (Changed,), {"changes": lambda self: changes})


class HidesFailures(Changed):
    async def run(self, command, **options):
        try:
            return await super().run(command, **options)
        except art.InfrastructureError as error:
            return art.SandboxResult(exit_status=1, stderr=str(error))


class TakesAnyPath(Changed):
    async def run(self, command, *, files=None, **options):
        return await super().run(command, **options)


class OneAfterTheOther(Changed):
    written = ""

    def result(self, result):
        last, type(self).written = type(self).written or result.stdout, result.stdout
        return attrs.evolve(result, stdout=last)


class Raises(Changed):
    def result(self, result):
        if result.exit_status == 127:
            raise FileNotFoundError("no such command")
        return result


class ClosesOnce(Changed):
    closed = False

    async def close(self):
        assert not self.closed
        self.closed = True


class SharesADirectory(Changed):
    made: ClassVar = {}

    async def run(self, command, **options):
        found = await super().run(command, files=self.made, collect=["left.txt"])
        self.made.update(found.files)
        return found


FAULTS = {
    "test_outputs_and_the_exit_status_are_returned": evolving(stderr=""),
    "test_it_reads_standard_input": giving(stdin=""),
    "test_its_files_are_in_its_directory": giving(files={}),
    "test_asked_files_are_returned": giving(collect=()),
    "test_a_run_leaves_nothing_for_the_next": SharesADirectory,
    "test_runs_at_the_same_time_are_apart": OneAfterTheOther,
    "test_a_program_that_takes_too_long_is_killed": evolving(exit_status=-9),
    "test_what_it_started_ends_too": evolving(exit_status=None),
    "test_output_without_end_is_cut": limiting(output_kb=1),
    "test_memory_is_limited": limiting(memory_mb=8192),
    "test_files_are_limited": limiting(file_mb=64),
    "test_output_that_is_no_text_is_returned_as_text": evolving(stdout="ab"),
    "test_a_command_that_does_not_exist_is_a_result": Raises,
    "test_a_sandbox_that_does_not_work_is_an_infrastructure_failure": HidesFailures,
    "test_it_can_be_closed_twice": ClosesOnce,
}
FOUND = (AssertionError, FileNotFoundError, pytest.fail.Exception)


def contract(made):
    class Trying(SandboxContract):
        python = sys.executable
        seconds = 1.0

        def sandbox(self):
            return made()

        def broken_sandbox(self):
            return made(folder="/no/such/directory")

    return Trying()


@pytest.mark.parametrize("test", FAULTS)
def test_a_fault_is_found(test):
    with pytest.raises(FOUND):
        getattr(contract(FAULTS[test]), test)()


def test_a_path_that_leaves_the_directory_is_looked_at():
    with pytest.raises(pytest.fail.Exception):
        contract(TakesAnyPath).test_a_path_that_leaves_the_directory_is_refused("../x")


def test_variables_are_looked_at(monkeypatch):
    everything = {"PATH": "/usr/bin", "ART_CONTRACT_SECRET": "x"}
    monkeypatch.setattr(processes, "_variables", lambda folder: everything)
    with pytest.raises(AssertionError):
        contract(Changed).test_it_does_not_see_variables_of_this_program(monkeypatch)


@pytest.mark.skipif(not processes.namespaces(), reason="no namespaces here")
def test_a_network_is_looked_for():
    with pytest.raises(AssertionError):
        contract(limiting(network=True)).test_it_reaches_no_network()


def test_what_is_stated_is_not_tried():
    made = []
    stated = contract(limiting(network=True, memory_mb=8192))
    stated.sandbox = lambda: made.append(1)
    stated.has_network = stated.memory_is_unlimited = True
    stated.test_it_reaches_no_network()
    stated.test_memory_is_limited()
    assert not made


@pytest.mark.parametrize("method", ["sandbox", "broken_sandbox"])
def test_what_is_not_given_is_asked_for(method):
    with pytest.raises(AssertionError, match=f"give {method}()"):
        getattr(SandboxContract(), method)()


def test_a_sandbox_has_nothing_to_close_by_default():
    sandbox = SubprocessSandbox()
    asyncio.run(sandbox.close())
    assert asyncio.run(sandbox.run(["true"])).exit_status == 0, "it still runs commands"
