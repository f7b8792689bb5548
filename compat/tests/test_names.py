"""Which names of ART there are, and what the others answer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import art
import art_core
from art._alone import check_alone
from art._missing import BACKEND, MODULES, NAMES, MissingError

SURFACE = {
    "art": [
        "Backend", "LocalBackend", "LocalTrainResult", "Messages", "MessagesAndChoices", "Model",
        "ServerlessBackend", "ServerlessTrainResult", "Tools", "TrainConfig", "TrainResult",
        "TrainSFTConfig", "TrainableModel", "Trajectory", "TrajectoryGroup",
        "capture_yielded_trajectory", "dev", "gather_trajectories", "gather_trajectory_groups",
        "retry", "trajectory_group_batches", "yield_trajectory",
    ],
    "art.api_costs": ["track_api_cost"],
    "art.dev": [
        "EngineArgs", "InitArgs", "InternalModelConfig", "OpenAIServerConfig", "PeftArgs",
        "ServerArgs", "TinkerArgs", "TinkerNativeArgs", "TinkerTrainingClientArgs", "TrainConfig",
        "TrainSFTConfig", "TrainerArgs",
    ],
    "art.dev.engine": ["EngineArgs"],
    "art.dev.model": ["InitArgs", "InternalModelConfig", "PeftArgs", "TrainerArgs"],
    "art.dev.openai_server": ["OpenAIServerConfig", "ServerArgs"],
    "art.dev.train": ["TrainConfig", "TrainSFTConfig"],
    "art.errors": ["ARTError"],
    "art.gather": ["gather_trajectories", "gather_trajectory_groups"],
    "art.langgraph": ["init_chat_model", "wrap_rollout"],
    "art.local": ["LocalBackend"],
    "art.local.backend": ["LocalBackend"],
    "art.metrics": ["MetricsBuilder", "track_api_cost"],
    "art.model": ["Model", "TrainableModel"],
    "art.rewards": ["ruler", "ruler_score_group"],
    "art.rewards.ruler": ["ruler", "ruler_score_group"],
    "art.serverless.backend": ["ServerlessBackend"],
    "art.tinker": ["TinkerBackend"],
    "art.tinker_native": ["TinkerNativeBackend"],
    "art.trajectories": ["History", "Trajectory", "TrajectoryGroup", "get_messages"],
    "art.types": ["Choice", "Message", "MessageOrChoice", "Messages", "Verbosity"],
    "art.utils": [
        "format_message", "get_model_step", "iterate_dataset", "limit_concurrency",
        "log_http_errors", "retry",
    ],
    "art.utils.litellm": ["convert_litellm_choice_to_openai"],
    "art.utils.output_dirs": ["get_default_art_path", "get_model_dir", "get_step_checkpoint_dir"],
    "art.utils.strip_logprobs": ["strip_logprobs"],
}  # fmt: skip


@pytest.mark.parametrize("module", SURFACE)
def test_a_module_of_art_has_its_names(module):
    found = importlib.import_module(module)
    assert [name for name in SURFACE[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("module", MODULES)
def test_an_import_of_a_missing_module_gives_the_reason(module):
    with pytest.raises(
        MissingError, match=f"no {module.replace('.', '[.]')}: {MODULES[module][0]}"
    ):
        importlib.import_module(module)


def test_an_import_below_a_missing_module_gives_its_reason():
    with pytest.raises(MissingError, match=r"no art[.]skypilot: .* `art serve`"):
        importlib.import_module("art.skypilot.backend")


def test_a_module_that_art_does_not_have_either_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("art.nothing")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_name_gives_the_reason(name):
    with pytest.raises(MissingError, match=f"art.{name}: "):
        getattr(art, name)


def test_an_import_of_a_missing_name_keeps_its_message():
    with pytest.raises(MissingError, match="model.recording"):
        from art import capture_auto_trajectory  # noqa: F401


def test_a_name_that_art_does_not_have_either_is_no_attribute():
    assert not hasattr(art, "nothing")
    assert not hasattr(art.LocalBackend(), "nothing")


@pytest.mark.parametrize("name", BACKEND)
def test_a_missing_method_of_a_backend_gives_the_reason(name):
    with pytest.raises(MissingError, match=f"LocalBackend.{name}: "):
        getattr(art.LocalBackend(), name)


def test_the_abstract_backend_names_those_that_there_are():
    with pytest.raises(MissingError, match="art.LocalBackend"):
        art.Backend()


def test_mcp_scenarios_are_those_of_art_mcp():
    with pytest.raises(MissingError, match="art_mcp.generate_scenarios"):
        from art.mcp import generate_scenarios  # noqa: F401


def test_openpipe_art_beside_it_is_an_import_error_with_the_way_out():
    with pytest.raises(ImportError, match="openpipe-art 0.5.18 .* pip uninstall openpipe-art"):
        check_alone(lambda name: "0.5.18")


def test_without_openpipe_art_the_check_passes():
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    check_alone(absent)


def put_theirs(site: Path) -> None:
    """Write what the installer leaves of openpipe-art."""
    record = site / "openpipe_art-0.5.18.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: openpipe-art\nVersion: 0.5.18\n")


def test_import_art_is_refused_where_openpipe_art_is_installed(tmp_path):
    put_theirs(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import art"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "ImportError: openpipe-art 0.5.18 and art-compat are both installed" in result.stderr


def test_a_build_is_refused_where_openpipe_art_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(str(Path(art.__file__).parent.parent))
    refuse = importlib.import_module("refuse")
    hook = object.__new__(refuse.RefuseBesideArt)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"purelib": str(tmp_path), "platlib": ""})
    hook.initialize("standard", {})
    put_theirs(tmp_path)
    with pytest.raises(RuntimeError, match="pip uninstall openpipe-art"):
        hook.initialize("standard", {})


def test_the_core_has_no_module_named_art():
    root = Path(art_core.__file__).parent.parent
    assert [p for p in root.glob("*/art") if p.parent.name != "compat" and p.is_dir()] == []
