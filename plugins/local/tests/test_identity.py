"""A base model is known by its config and weights, not by where it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from art_core.base.errors import ConfigError
from art_local.models import find
from art_local.models.find import BaseIdentity, fingerprint

CUT_OFF = b"\x3d\0\0\0\0\0\0\0" + (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}')


@pytest.fixture
def base(tiny_directory, tmp_path):
    return Path(shutil.copytree(tiny_directory, tmp_path / "base"))


@pytest.fixture(params=[find.HASHED_WHOLE, 0], ids=["whole", "sampled"])
def amount(request, monkeypatch):
    monkeypatch.setattr(find, "HASHED_WHOLE", request.param)


def rewrite(base, change):
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.usefixtures("amount")
def test_the_fingerprint_does_not_depend_on_place_files_or_version(base, tiny_directory):
    wanted = fingerprint(tiny_directory)
    config = json.loads((base / "config.json").read_text())
    told = {"_name_or_path": "elsewhere", "transformers_version": "9", "dtype": "float16"}
    (base / "config.json").write_text(json.dumps(config | told, indent=8))
    assert fingerprint(base) == wanted
    weights = load_file(base / "model.safetensors")
    names, files = sorted(weights), ("model-1.safetensors", "model-2.safetensors")
    halves = dict(zip(files, (names[::2], names[1::2]), strict=True))
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, base / file)
    (base / "model.safetensors").unlink()
    assert fingerprint(base) == wanted
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"x": torch.ones(1)}, base / "consolidated.safetensors")
    assert fingerprint(base) == wanted


@pytest.mark.usefixtures("amount")
@pytest.mark.parametrize("where", [0, 1])
def test_other_weights_shapes_or_settings_are_another_model(base, where):
    wanted = fingerprint(base)
    rewrite(base, lambda w: w[sorted(w)[where]].mul_(1.001))
    scaled = fingerprint(base)
    rewrite(base, lambda w: w.update(extra=torch.ones(2)))
    longer = fingerprint(base)
    rewrite(base, lambda w: w.update(extra=torch.ones(2, 1)))
    shaped = fingerprint(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert len({wanted, scaled, longer, shaped, fingerprint(base)}) == 5


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", CUT_OFF])
def test_weights_that_cannot_be_read_are_an_error_in_words(base, damage):
    (base / "model.safetensors").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"can't be read.*Fetch it again"):
        fingerprint(base)


def test_a_checkpoint_without_a_fingerprint_is_known_by_its_base_models_name(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    here = BaseIdentity.of("./base", base)

    for name in ("./base", str(base), f"{base}/", "base"):
        here.check(base, {"base_model": name})
    with pytest.raises(ConfigError, match="base_model='other', this run asks for './base'"):
        here.check(base, {"base_model": "other"})
    here.check(base, {"base_model": "other", "base_fingerprint": here.fingerprint})
    with pytest.raises(ConfigError, match="over another base model"):
        here.check(base, {"base_model": "./base", "base_fingerprint": "0" * 64})
