import os
from pathlib import Path

import pytest

from art_core.errors import ConfigError
from art_core.files import read_json, replace_json


def test_a_value_is_read_back_and_its_directory_is_made(tmp_path):
    file = tmp_path / "deep" / "state.json"
    replace_json(file, {"position": 3, "names": ["é"]})
    assert read_json(file) == {"position": 3, "names": ["é"]}
    replace_json(file, {"position": 4}, sync=False)
    assert read_json(file) == {"position": 4}
    assert [f.name for f in file.parent.iterdir()] == ["state.json"]


def test_a_missing_file_is_empty(tmp_path):
    assert read_json(tmp_path / "nothing.json") == {}


def test_a_value_that_json_cannot_hold_is_refused_and_the_file_stays(tmp_path):
    file = tmp_path / "state.json"
    replace_json(file, {"position": 3})
    with pytest.raises(ConfigError, match=r"cannot keep this in state\.json: .*PosixPath"):
        replace_json(file, {"position": Path()})
    assert read_json(file) == {"position": 3}
    assert [f.name for f in tmp_path.iterdir()] == ["state.json"]


def test_a_replacement_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "state.json").mkdir()
    with pytest.raises(OSError, match=r"state\.json"):
        replace_json(tmp_path / "state.json", {"position": 4})
    assert [f.name for f in tmp_path.iterdir()] == ["state.json"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        replace_json(tmp_path / "state.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o644
