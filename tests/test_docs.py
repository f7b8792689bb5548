"""The docs match the code: examples run, tables are current, every name is documented."""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib.util
import inspect
import itertools
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from fences import commands
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser

import art_core as art
from art_core.cli.main import main as art_command
from art_core.cli.main import parser
from art_core.cli.new import rendered, words_of
from art_core.hooks import hookspecs
from art_core.hooks.host import installed_plugins
from art_core.run import exits
from art_core.testing.echo import EchoBackend

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
READMES = [ROOT / "README.md", *(ROOT / f"plugins/{name}/README.md" for name in ("argus", "local"))]
PAGES = [*READMES, *sorted(DOCS.glob("*.md"))]
HOOKS = [name for name in vars(hookspecs) if name.startswith("art_")]
REQUESTS = itertools.count()


def yes_or_maybe(messages: Any, step: int) -> str:
    return "maybe" if next(REQUESTS) % 2 else "yes"


@attrs.define
class StandIn:
    """What examples call "local" trains nothing; endpoint, client and log are real."""

    made: list[EchoBackend] = attrs.field(factory=list)

    @art.hookimpl
    def art_backends(self):
        return [art.BackendSpec(name="local", create=self.create, summary="a stand-in")]

    def create(self, gpu_cost_per_hour_usd: float | None = None) -> EchoBackend:
        price = gpu_cost_per_hour_usd
        self.made.append(EchoBackend(reply=yes_or_maybe, gpu_cost_per_hour_usd=price))
        return self.made[-1]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty directory, and a "local" backend that needs neither torch nor time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ART_BLOCK", "local")
    monkeypatch.setenv("ART_SINKS", "")
    stand_in = StandIn()
    installed_plugins.cache_clear()
    installed_plugins().register(stand_in, "local")
    yield
    installed_plugins.cache_clear()
    for backend in stand_in.made:
        asyncio.run(backend.close())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_python_example_runs(page: Path, stage: None, no_open_models: None, tmp_path: Path):
    write_files_of(page, tmp_path)
    before = list(exits.program.runs)
    with asyncio.Runner() as runner:

        def run(example: Example) -> None:
            source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
            code = compile(
                source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            coroutine = eval(code, example.namespace)
            if inspect.iscoroutine(coroutine):
                runner.run(coroutine)

        parsers = [CodeBlockParser("python", run), CodeBlockParser("console", run_commands)]
        examples = list(Sybil(parsers).parse(page).examples())
        for example in examples:
            example.evaluate()
    assert len(examples) == len(re.findall("```(?:python|console)\n", page.read_text()))
    left = [run.name for run in exits.program.runs if run not in before]
    assert left == [], "an example leaves a model open"


def run_commands(example: Example) -> None:
    """Run what a block types after `$`: `art` in this process, which trains one step, and scripts
    of the page.
    """
    for line in example.parsed.splitlines():
        for words in commands(line.removeprefix("$ ")) if line.startswith("$ ") else ():
            if words[0] == "python":
                runpy.run_path(words[1], run_name="__main__")
            else:
                assert words[0] == "art", f"{line}: only art and python are run"
                steps = ["--steps", "1"] if words[1] == "train" else []
                assert art_command([*words[1:], *steps]) == 0, line


def files_of(page: Path) -> dict[str, str]:
    """Return the files in a page: blocks whose first line is a comment with a path."""
    told = r"^```\w+\n# (\S+\.(?:py|toml))\n(.*?)^```"
    return dict(re.findall(told, page.read_text(), re.MULTILINE | re.DOTALL))


def write_files_of(page: Path, folder: Path) -> None:
    for path, text in files_of(page).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize("name", ["tutorial-plugin", "write-a-sink", "write-a-price-book"])
def test_the_tests_told_in_a_page_pass(name: str, tmp_path: Path, run_its_tests):
    write_files_of(DOCS / f"{name}.md", tmp_path / "told")
    said = run_its_tests(tmp_path / "told", ".")
    assert " passed" in said
    assert "skipped" not in said


def test_the_page_about_sinks_shows_the_example_as_it_is():
    example = DOCS / "examples/art-sink-example"
    places = {"art_sink_example.py": "", "pyproject.toml": "", "test_art_sink_example.py": "tests"}
    files = {name: (example / folder / name).read_text() for name, folder in places.items()}
    assert files_of(DOCS / "write-a-sink.md") == files


def test_the_page_of_figures_has_a_row_for_each_benchmark():
    told = re.findall(r"^\| `(\w+\.py)` \|", (DOCS / "benchmarks.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def test_the_page_about_backends_shows_what_art_new_writes():
    written = {str(p): t for p, t in rendered("backend", words_of("backend", "cluster")).items()}
    written["test_backend.py"] = written["tests/test_backend.py"]
    told = files_of(DOCS / "write-a-backend.md")
    assert len(told) == 4
    assert told.items() <= written.items()


def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_parts_are_up_to_date(page: Path):
    text = page.read_text()
    assert generator().rewritten(text) == text, "run `make docs`"


def test_every_public_name_is_told():
    page = (DOCS / "names.md").read_text()
    assert [name for name in art.__all__ if f"`art.{name}`" not in page] == []


@pytest.mark.parametrize("name", sorted(set(art.__all__) - {"hookimpl"}))
def test_the_reference_has_each_public_name_with_its_parameters_and_methods(name: str):
    thing = getattr(art, name)
    section = (DOCS / "reference.md").read_text().split(f"\n### art.{name}\n")[1].split("\n##")[0]
    fields = attrs.fields_dict(thing) if inspect.isclass(thing) and attrs.has(thing) else {}
    names = {field.alias for field in fields.values() if field.init}
    names |= {
        m for m in vars(thing) if inspect.isclass(thing) and inspect.isfunction(vars(thing)[m])
    }
    assert {n for n in names if n[0] != "_" and not re.search(rf"\b{n}\b", section)} == set()


def test_every_option_of_a_step_is_told():
    page = (DOCS / "losses.md").read_text() + (DOCS / "credit.md").read_text()
    assert [f.name for f in attrs.fields(art.TrainConfig) if f"`{f.name}" not in page] == []


def test_every_parameter_and_method_of_what_users_begin_with_is_told():
    pages = "\n".join(page.read_text() for page in (ROOT / "README.md", *DOCS.glob("*.md")))
    models = (art.Model, art.TrainableModel)
    begun_with = (*models, art.TrajectoryGroup, art.gather_trajectory_groups)
    names = {name for thing in begun_with for name in inspect.signature(thing).parameters}
    names |= {name for model in models for name in dir(model)}
    public = {name for name in names if not name.startswith("_")}
    assert {name for name in public if not re.search(rf"\b{name}\b", pages)} == set()


def test_every_method_of_the_metrics_builder_is_told():
    page = (DOCS / "metrics.md").read_text()
    methods = [
        name for name, thing in vars(art.MetricsBuilder).items() if inspect.isfunction(thing)
    ]
    assert [n for n in methods if n[0] != "_" and not re.search(f"`{n}[`(]", page)] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_told_with_its_exact_signature(hook: str):
    told = f"`{hook}{inspect.signature(getattr(hookspecs, hook))}`".replace("'", "")
    plain = re.sub(r": [\w\[\], |]+(?=[,)])", "", told)
    assert plain.replace("|", "\\|") in (DOCS / "architecture.md").read_text()


def all_commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    def below(name: str, one: argparse.ArgumentParser) -> Iterator[tuple[str, Any]]:
        groups = [a for a in one._actions if isinstance(a, argparse._SubParsersAction)]
        for group in groups:
            for word, child in group.choices.items():
                yield from below(f"{name} {word}", child)
        if not groups:
            yield name, one

    return below("art", parser(art.Plugins.discover()))


@pytest.mark.parametrize(
    ("name", "command"), list(all_commands()), ids=lambda value: str(value)[:12]
)
def test_every_command_is_told_with_its_options(name: str, command: argparse.ArgumentParser):
    page = (DOCS / "cli.md").read_text().splitlines()
    lines = [line for line in page if re.match(rf"\| `{re.escape(name)}[ `]", line)]
    assert len(lines) == 1
    for action in command._actions:
        word = action.option_strings[-1] if action.option_strings else str(action.metavar)
        assert word in ("--help", "--json") or word in lines[0]


def test_every_environment_variable_is_told():
    folders = (ROOT / "art_core", ROOT / "plugins", ROOT / "examples")
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    used = set(re.findall(r'"(ART_[A-Z]+)"', "".join(sources)))
    page = (DOCS / "cli.md").read_text()
    assert {name for name in used if f"| `{name}` |" not in page} == set()


def test_every_module_of_the_core_is_in_the_tree():
    page = (DOCS / "architecture.md").read_text()
    modules = {path.name for path in (ROOT / "art_core").glob("**/*.py")}
    inside = {p.name for d in ("cli", "endpoint") for p in (ROOT / "art_core" / d).glob("*.py")}
    hidden = {"__init__.py", "__main__.py"} | inside
    assert {name for name in modules - hidden if f" {name} " not in page} == set()


@pytest.mark.parametrize("plugin", ["local", "unsloth", "ray", "tinker", "serverless"])
def test_every_module_of_a_backend_is_on_the_page_about_it(plugin: str):
    page = (DOCS / "inside.md").read_text()
    part = page.split(f"## `plugins/{plugin}`")[1].split("\n## ")[0]
    modules = {path.name for path in (ROOT / "plugins" / plugin / f"art_{plugin}").rglob("*.py")}
    named = set(re.findall(r"\w+\.py", part))
    assert modules - named == {"__init__.py", "plugin.py"} - named
    assert named - modules == set()


@pytest.mark.torch
def test_every_option_of_the_local_backend_is_told():
    backend = pytest.importorskip("art_local.backend").LocalBackend
    page = (DOCS / "backends.md").read_text()
    options = list(inspect.signature(backend).parameters)
    assert [option for option in options if f"`{option}`" not in page] == []


def test_every_page_of_the_board_has_its_picture():
    script = (ROOT / "plugins/board/art_board/static/run.js").read_text()
    tabs = re.findall(r'\["\w+", "(\w+)"\]', re.search(r"TABS = (.*);", script)[1])
    assert {"Curves", "Live"} < set(tabs)
    page = (DOCS / "board.md").read_text()
    for name in ("Runs", "Leaderboard", *tabs):
        assert f"| {name} |" in page
        picture = f"images/board-{name.lower()}.png"
        assert f"]({picture})" in page and (DOCS / picture).is_file()


def test_every_error_is_told():
    page = (DOCS / "architecture.md").read_text()
    assert [name for name in art.__all__ if name.endswith("Error") and name not in page] == []


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    navigation, first = (ROOT / "mkdocs.yml").read_text(), (DOCS / "index.md").read_text()
    pages = {p.name for p in DOCS.glob("*.md")}
    assert {name for name in pages if f"- {name}\n" not in navigation} == set()
    assert {name for name in pages if f"]({name})" not in first} == {"index.md"}
