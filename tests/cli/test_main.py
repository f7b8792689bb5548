from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import art_core as art
from art_core.cli import main as door


def test_without_a_command_it_says_what_there_is(capsys):
    assert door.main([]) == 0
    printed = capsys.readouterr().out
    for command in ("plugins", "backends", "sinks", "metrics", "models", "runs", "show"):
        assert command in printed


def helps(one: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield each command's name and help."""
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child.prog, child.format_help()
                yield from helps(child)


def test_each_command_explains_itself_with_examples():
    found = dict(helps(door.parser(art.Plugins())))
    assert {"art costs", "art models pull", "art rm", "art completion"} < found.keys()
    for name, text in found.items():
        assert " ".join(name.split()[:2]) in text.split("examples:")[1]
        assert max(map(len, text.splitlines())) <= 100


def test_it_tells_its_version(capsys):
    with pytest.raises(SystemExit):
        door.main(["--version"])
    assert capsys.readouterr().out == f"art-core {art.__version__}\n"


USAGE = [
    ("rnus", "art: argument COMMAND: invalid choice: 'rnus' (choose from "),
    ("costs", "art costs: the following arguments are required: RUN; see `art costs --help`\n"),
    ("costs a --step x", "art costs: argument --step: invalid int value: 'x'; see "),
    ("metrics --jsn", "art metrics: unrecognized arguments: --jsn; see `art metrics --help`\n"),
    ("new sink", "art new sink: the following arguments are required: NAME; see `art new sink "),
    ("runs --dir /nowhere", "art runs: argument --dir: there is no directory '/nowhere'; see "),
    ("export a --out .", "art export: argument --out: '.' is a directory, not a file; see "),
    ("plot a x/y --out /no/a.png", "art plot: argument --out: there is no directory '/no'; see "),
]


@pytest.mark.parametrize(("line", "said"), USAGE, ids=[line for line, _ in USAGE])
def test_a_wrong_argument_is_one_line_from_its_command(capsys, line, said):
    with pytest.raises(SystemExit) as exit_:
        door.main(line.split(), art.Plugins())
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


class Greets:
    def __init__(self, name):
        self.name = name

    @art.hookimpl
    def art_commands(self):
        return [
            art.CommandSpec(
                name=self.name,
                summary="say hello",
                create=lambda parser: parser.add_argument("who"),
                run=lambda arguments, plugins: [f"hello {arguments.who}"],
                help="examples:\n  art greet you",
            )
        ]


def test_a_plugin_adds_a_command(capsys):
    host = art.Plugins()
    host.register(Greets("greet"), "greets")
    assert door.main(["greet", "you"], host) == 0
    assert capsys.readouterr().out == "hello you\n"
    with pytest.raises(SystemExit):
        door.main(["greet", "--help"], host)
    assert "art greet you" in capsys.readouterr().out


def test_a_plugin_does_not_take_the_place_of_a_command_of_arts_own(shelf, capsys, caplog):
    host = art.Plugins()
    host.register(Greets("runs"), "greets")
    assert door.main(["runs"], host) == 0
    assert "hello" not in capsys.readouterr().out
    assert "'runs' of its own" in caplog.text


def test_python_m_art_core_is_the_same_program(tmp_path: Path):
    command = [sys.executable, "-m", "art_core", "runs", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith(f"no runs in {tmp_path}; ")


def test_the_module_form_returns_the_status_of_main(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["art"])
    with pytest.raises(SystemExit) as exit_:
        __import__("runpy").run_module("art_core", run_name="__main__")
    assert exit_.value.code == 0


def test_an_error_is_one_line_and_no_traceback(shelf, art_error):
    remedy = "--dir or ART_DIR is the directory of the runs."
    error = f"art: no run 'nobody'; in {shelf.path}: none. {remedy}\n"
    assert art_error("show", "nobody") == error


def test_a_file_that_may_not_be_read_is_one_line_too(shelf, art_error):
    (shelf.path / "demo" / "models" / "odd" / "history.jsonl").mkdir(parents=True)
    log = shelf.path / "demo" / "models" / "odd" / "history.jsonl"
    assert art_error("show", "odd") == f"art: {log}: Is a directory\n"


def test_an_interrupt_ends_in_one_line(capsys):
    class Host(art.Plugins):
        def taxonomy(self) -> None:
            raise KeyboardInterrupt

    assert door.main(["metrics"], Host()) == 130
    assert capsys.readouterr().err == "art: interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error(shelf, monkeypatch):
    shelf.run("a", {"reward/mean": 1.0})
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("ART_BLOCK", "local")
    command = [sys.executable, "-m", "art_core", "metrics"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_broken_pipe_is_pointed_at_nothing(monkeypatch, tmp_path: Path):
    class Broken(io.TextIOWrapper):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with (tmp_path / "pipe").open("wb") as file, monkeypatch.context() as patch:
        broken = Broken(file)
        patch.setattr(sys, "stdout", broken)
        assert door.main(["metrics"], art.Plugins()) == 0
        patch.undo()
        broken.detach()


def test_a_terminal_without_unicode_gets_question_marks(monkeypatch, shelf):
    shelf.run("a", {"reward/mean": 1.0})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert door.main(["show", "a"], art.Plugins()) == 0
    assert b"?" in written.getvalue()
