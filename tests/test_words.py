"""The check of English finds phrases where readers see them, and nothing in code or data."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SAY = {"find": r"\b(?:says?|said)\b", "instead": "report"}
ONLY = {"find": r"\balone\b", "unless": r"\bstands? alone\b", "instead": "only"}
RULES = {"max_lines": 3, "question_words": ["What"], "max_question_share": 0.5}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("words", DOCS / "words.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_comments_docstrings_and_messages_are_read_but_names_are_not(words, write):
    code = '"""It says\nwhat it said."""\nsaid = 1  # one says so\nprint(f"says {said}")\n'
    found = list(words.places(write("module.py", code), SAY))
    assert found == [(1, "says"), (2, "said"), (3, "says"), (4, "says")]


def test_in_tests_strings_are_data_and_docstrings_are_not(words, write):
    code = 'def test_it():\n    """It says so."""\n    assert reply == "he says"\n'
    assert list(words.places(write("tests/test_it.py", code), SAY)) == [(2, "says")]


def test_a_phrase_over_two_lines_of_a_page_is_found_and_an_exception_is_not(words, write):
    page = write("page.md", "# Title\n\nIt stands\nalone, read by\nB alone.\n")
    assert list(words.places(page, ONLY)) == [(5, "alone")]


def test_the_generated_parts_of_a_page_are_left_out(words, write):
    page = write("page.md", "<!-- generated: names -->\nIt says so.\n<!-- end -->\nIt said so.\n")
    assert list(words.places(page, SAY)) == [(4, "said")]


def test_a_fault_has_its_place_and_what_to_write_instead(words, write):
    page = write("page.md", "It says so.\n")
    assert words.phrase_faults([page], SAY) == ["page.md:1: 'says'; write: report"]


def test_long_modules_and_too_many_questions_are_faults(words, write):
    first = write("first.py", '"""What it is."""\n')
    second = write("second.py", '"""What it was."""\n\nx = 1\ny = 2\n')
    assert words.module_faults([first, second], RULES) == [
        "second.py: 4 lines; at most 3",
        "first.py:1: begins with 'What'",
        "second.py:1: begins with 'What'",
    ]
    plain = write("plain.py", '"""A value."""\n')
    assert words.module_faults([first, plain], RULES) == []
