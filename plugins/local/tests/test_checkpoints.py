"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap

import pytest

from art_core.base.errors import BackendError
from art_local.session.checkpoints import DIGEST, MANIFEST, CheckpointStore, DamagedError


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def fill(directory):
    (directory / "weights").write_bytes(b"123")
    (directory / "optimizer").write_bytes(b"45")


def names(store):
    return sorted(p.name for p in store.directory.iterdir())


def test_what_was_written_is_read_back_with_a_manifest(store):
    written = store.write(7, fill, {"base_model": "b"})
    assert written.path == store.directory / "0007"
    found = store.newest_whole()
    assert found.step == 7
    assert found.manifest["base_model"] == "b"
    assert found.manifest["files"]["weights"]["bytes"] == 3
    assert found.manifest == json.loads((written.path / MANIFEST).read_text())


def test_a_failure_while_writing_leaves_nothing(store):
    store.write(1, fill, {})

    def full_disk(directory):
        (directory / "weights").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    with pytest.raises(BackendError, match="No space left on device.*delete old checkpoints"):
        store.write(2, full_disk, {})
    assert names(store) == ["0001"]


FULL = """
    import resource, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from art_core.base.errors import BackendError
    from art_local.session.checkpoints import CheckpointStore
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    def fill(directory):
        save_file({"w": torch.zeros(1000)}, directory / "weights")
    try:
        CheckpointStore(Path(sys.argv[1])).write(2, fill, {})
    except BackendError as error:
        print(error)
"""


def test_weights_that_the_disk_does_not_take_say_so_and_leave_nothing(store):
    """What writes tensors has an error of its own for a full disk."""
    store.write(1, fill, {})
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(store.directory)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "checkpoint 2 could not be written" in told
    assert "File too large" in told
    assert "delete old checkpoints" in told
    assert names(store) == ["0001"]


KILLED = """
    import os, sys
    from pathlib import Path
    from art_local.session import checkpoints
    store = checkpoints.CheckpointStore(Path(sys.argv[1]))
    calls = 0
    def dying(path, fsync=checkpoints._fsync):
        global calls
        calls += 1
        if calls > int(sys.argv[3]):
            os._exit(9)
        fsync(path)
    checkpoints._fsync = dying
    def fill(directory):
        (directory / "weights").write_bytes(b"new")
        (directory / "optimizer").write_bytes(b"new")
    store.write(int(sys.argv[2]), fill, {})
"""


@pytest.mark.parametrize("syncs", range(6))
@pytest.mark.parametrize("step", [1, 2], ids=["replacing", "new"])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(store, syncs, step):
    store.write(1, fill, {})
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(KILLED),
        str(store.directory),
        str(step),
        str(syncs),
    ]
    killed = subprocess.run(command, check=False).returncode
    assert killed == (9 if syncs < 5 else 0)
    found = store.newest_whole()
    assert found.step == (step if syncs >= 4 else 1)
    assert all(name.isdecimal() for name in names(store))


def test_a_kill_between_moving_the_old_away_and_the_new_in_brings_the_old_back(store):
    store.write(3, fill, {})
    store.path(3).rename(store.directory / ".tmp-old-0003-77")
    assert store.newest_whole().step == 3
    assert names(store) == ["0003"]


@pytest.mark.parametrize("damage", [b"12", b"124"], ids=["shorter", "other contents"])
def test_a_corrupted_checkpoint_is_set_aside_and_the_one_before_it_is_used(store, damage, caplog):
    store.write(1, fill, {})
    store.write(2, fill, {})
    (store.path(2) / "weights").write_bytes(damage)
    assert store.newest_whole().step == 1
    assert names(store) == ["0001", "0002.corrupted"]
    assert "is corrupted: weights has" in caplog.text


def test_a_changed_byte_of_any_file_is_found(store):
    """Of the manifest, too, whose settings would be refused for another reason, or be believed."""
    store.write(1, fill, {"lora_rank": 4, "base_fingerprint": "f" * 64})
    store.write(2, fill, {"lora_rank": 4, "base_fingerprint": "f" * 64})
    chance = random.Random(3)
    for file in sorted(store.path(2).iterdir()):
        whole = file.read_bytes()
        for place in {chance.randrange(len(whole)) for _ in range(40)}:
            changed = bytearray(whole)
            changed[place] ^= 1 << chance.randrange(7)
            file.write_bytes(changed)
            if means_the_same(file.name, whole, changed):
                assert store.read(2).manifest["lora_rank"] == 4
                continue
            with pytest.raises(DamagedError):
                store.read(2)
        file.write_bytes(whole)
    assert store.newest_whole().step == 2


def means_the_same(name, whole, changed):
    """Return whether a changed manifest has the same entries: a blank became another one, or the
    name of its hash is another.
    """
    if name != MANIFEST:
        return False
    try:
        entries = [json.loads(text) for text in (whole, changed)]
    except ValueError:
        return False
    return entries[0] == entries[1] or DIGEST not in entries[1]


def test_a_directory_without_a_manifest_is_no_checkpoint(store):
    store.path(4).mkdir(parents=True)
    assert store.steps() == []
    assert store.newest_whole() is None


def later(manifest):
    """Return a manifest of a schema that is not known here."""
    return {key: value for key, value in manifest.items() if key != DIGEST} | {"schema": 99}


def test_a_checkpoint_of_a_later_schema_says_to_update(store):
    path = store.write(1, fill, {}).path
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(later(manifest)))
    with pytest.raises(BackendError, match="schema 99.*Update art-local"):
        store.read(1)


def test_a_checkpoint_that_cannot_be_read_here_is_no_reason_to_take_an_older_one(
    store, monkeypatch
):
    store.write(1, fill, {})
    manifest = store.write(2, fill, {}).path / MANIFEST
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(later(told)))
    with pytest.raises(BackendError, match="Update art-local"):
        store.newest_whole()
    manifest.write_text(json.dumps(told))

    def failing(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("art_local.session.checkpoints._sha256", failing)
    with pytest.raises(BackendError, match=r"0002 could not be read: .*Input/output error.*older"):
        store.newest_whole()
    assert names(store) == ["0001", "0002"]


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "files": 3}'])
def test_a_manifest_that_is_none_is_damage(store, manifest):
    (store.write(1, fill, {}).path / MANIFEST).write_text(manifest)
    assert store.newest_whole() is None
    assert names(store) == ["0001.corrupted"]


def test_deleting_keeps_the_asked_steps_and_the_newest(store):
    for step in (1, 2, 3, 4):
        store.write(step, fill, {})
    assert store.delete(keep=[2]) == [1, 3]
    assert store.steps() == [2, 4]


def test_leftovers_are_removed_and_said(store, caplog):
    store.write(1, fill, {})
    (store.directory / ".tmp-0002-99").mkdir()
    assert store.newest_whole().step == 1
    assert names(store) == ["0001"]
    assert "the remains of an unfinished checkpoint" in caplog.text
