"""The shape of the code stays within limits: `python docs/shape.py` prints where it stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
MAX_CORE_LINES, MAX_CORE_FILES = 19_832, 114
MAX_MODULE_LINES = 400
MAX_GROUP_FILES, MAX_COST_FILES, MAX_REGISTER_FILES, MAX_WALK_FILES = 10, 10, 13, 10


@pytest.fixture(scope="module")
def shape() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shape", ROOT / "docs" / "shape.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folders_have_an_order(shape):
    assert shape.circles() == []


def test_the_core_stays_small(shape):
    proper = shape.core_proper()
    assert sum(map(shape.line_count, proper)) <= MAX_CORE_LINES
    assert len(proper) <= MAX_CORE_FILES


def test_no_module_is_too_long(shape):
    everything = [file for package in shape.packages() for file in shape.modules(package)]
    long = {str(f.relative_to(ROOT)): shape.line_count(f) for f in everything}
    assert {name: lines for name, lines in long.items() if lines > MAX_MODULE_LINES} == {}


def test_a_group_and_a_cost_go_through_few_files(shape):
    assert len(shape.group_path()) <= MAX_GROUP_FILES
    assert len(shape.cost_path()) <= MAX_COST_FILES


@pytest.mark.torch
def test_registering_a_local_model_goes_through_few_files(shape):
    pytest.importorskip("art_local")
    assert len(shape.register_path()) <= MAX_REGISTER_FILES


def test_the_walk_page_opens_few_files_that_exist(shape):
    opened = shape.walk_files()
    assert 0 < len(opened) <= MAX_WALK_FILES
    assert [name for name in opened if not (shape.CORE / name).is_file()] == []


def test_module_docstrings_are_sentences(shape):
    everything = [file for package in shape.packages() for file in shape.modules(package)]
    assert len(shape.openers()) <= 0.05 * len(everything)


def test_public_classes_have_names_of_their_own(shape):
    assert shape.shared_names() == {}
