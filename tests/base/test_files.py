import os
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import attrs
import orjson
import pytest

from art_core.base.errors import ConfigError
from art_core.base.files import json_line, read_json, replace_json, sweep_leftovers


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


DEAD = 2**22 + 1  # above the largest process id of Linux


def test_files_of_killed_processes_are_swept_and_others_stay(tmp_path, monkeypatch):
    mine, foreign = os.getpid(), 1
    kept = [f".status.json.{pid}-0123456789ab.tmp" for pid in (mine, foreign)]
    kept += [".status.json.tmp", "status.json", ".tmp-0001-77", ".note.tmp"]
    swept = [f".{pid}.json.{pid}-0123456789ab.tmp" for pid in (DEAD, 10**30)]
    for name in [*kept, *swept, ".summary.json.0123456789ab.tmp"]:
        (tmp_path / name).touch()
    kill = os.kill

    def refused(pid, number):
        if pid == foreign:
            raise PermissionError
        kill(pid, number)

    monkeypatch.setattr(os, "kill", refused)
    sweep_leftovers(tmp_path / "nowhere", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_replacement_that_is_killed_leaves_a_file_that_is_swept(tmp_path):
    code = (
        "import os, sys, pathlib; from art_core.base import files;"
        "files.os.fsync = lambda fd: os._exit(9);"
        "files.replace_json(pathlib.Path(sys.argv[1]), {})"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "state.json")], check=False)
    assert killed.returncode == 9
    assert len([*tmp_path.iterdir()]) == 1
    sweep_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        replace_json(tmp_path / "state.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("content", ["{oops", "[1]", ""])
def test_a_file_that_holds_no_object_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ConfigError, match=r"state\.json .*Mend or delete it"):
        read_json(tmp_path / "state.json")


@attrs.frozen
class Wide:
    x: int


class Silent:
    def __repr__(self):
        raise ValueError("nothing to see")

    def tolist(self):
        raise ValueError("nothing to give")


@pytest.mark.parametrize(
    ("odd", "kept"),
    [
        (Wide(1 << 64), "Wide(x=18446744073709551616)"),
        ({1 << 64}, ["18446744073709551616"]),
        (Silent(), "<Silent>"),
        (Decimal("0.5"), 0.5),
        (Fraction(10**400), repr(Fraction(10**400))),
        ({Silent: Silent()}, {f"{Silent!r}": "<Silent>"}),
    ],
)
def test_a_line_holds_any_value_as_close_as_can_be(odd, kept):
    assert orjson.loads(json_line({"odd": odd, "n": 1})) == {"odd": kept, "n": 1}


def test_a_value_that_holds_itself_is_kept_to_a_depth():
    holder = {"n": 1}
    holder["self"] = holder
    stored = orjson.loads(json_line(holder))
    assert stored["self"]["self"]["n"] == 1
