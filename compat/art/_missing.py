"""Names of ART without a counterpart here. Their errors name what to use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from art_core import ArtError


class MissingError(ArtError, ImportError):
    """A name of ART that art-compat does not have; the message names ours, or the reason."""


_CALLED_BY = "it is a part of ART that its own backends call"
_EXPORT = (
    "art-core deploys to no provider",
    "`art export-weights RUN` writes the weights for any server.",
)
_READ = ("art-core writes JSON lines", "art_core.open_run(...) reads the trajectories of a run.")
_REPORTS = ("art-core has reports of its own", "See `art show`, `art compare` and `art plot`.")
_REMOTE = (
    "art-core starts no machines",
    "Run `art serve` on the machine and use art.ServerlessBackend(base_url=...).",
)
_COPY = (
    "checkpoints are plain directories below the run's directory",
    "Copy them, by `aws s3 sync` for example: docs/backends.md#checkpoints.",
)
_RECORDING = (
    "art-core does not patch HTTP clients",
    "Use `with model.recording(trajectory) as endpoint:` and give the agent that endpoint.",
)
_PRICES = ("art-core reads prices from price books", "Write one: docs/write-a-price-book.md.")

MODULES: dict[str, tuple[str, str]] = {
    "art.cli": ("art-core has a command line of its own", "See `art --help`."),
    "art.costs": _PRICES,
    "art.guided_completion": (
        "a request states the form of its answer",
        "Give response_format=... or tool_choice=... to the endpoint.",
    ),
    "art.loss": (
        "losses are values in art_core.rl.losses",
        "Give loss_fn=..., also a function of your own: docs/losses.md.",
    ),
    "art.megatron": ("art-core trains on one device and has no Megatron", ""),
    "art.metrics_taxonomy": (
        "the taxonomy is in art_core.metrics",
        "`art metrics` lists the names of metrics.",
    ),
    "art.openai": (_CALLED_BY, "The client comes from model.openai_client()."),
    "art.pipeline_trainer": (
        "art-core has a function in place of PipelineTrainer",
        "await art_core.pipeline(model, scenarios, rollout, ...): docs/pipeline.md.",
    ),
    "art.preprocessing": (_CALLED_BY, "art_core.rl.batch makes training sequences of groups."),
    "art.skypilot": _REMOTE,
    "art.transformers": (_CALLED_BY, ""),
    "art.unsloth": (
        "Unsloth is a backend of art-core",
        'pip install art-unsloth; art_core.backend("unsloth").',
    ),
    "art.vllm_runtime": ("vLLM is installed by a command", "Run `art engines install vllm`."),
    "art.weight_transfer": (_CALLED_BY, ""),
    "art.utils.benchmark_rollout": _REPORTS,
    "art.utils.benchmarking": _REPORTS,
    "art.utils.old_benchmarking": _REPORTS,
    "art.utils.deploy_model": _EXPORT,
    "art.utils.deployment": _EXPORT,
    "art.utils.record_provenance": (
        "art-core keeps no artifacts at W&B",
        "Give facts about a run as config= of the model.",
    ),
    "art.utils.s3": _COPY,
    "art.utils.s3_checkpoint_utils": _COPY,
    "art.utils.sft": (
        "model.train_sft reads files itself",
        'await art_core.TrainableModel.train_sft(model, "data.jsonl", epochs=...): docs/sft.md.',
    ),
    "art.utils.trajectory_logging": _READ,
    "art.utils.trajectory_migration": _READ,
}

NAMES: dict[str, tuple[str, str]] = {
    "LinearTemperatureAnnealer": (
        "the endpoint has no schedule",
        "Give temperature=... to requests.",
    ),
    "LocalAPI": (
        "later releases of ART call it LocalBackend",
        "from art.local import LocalBackend.",
    ),
    "SkyPilotAPI": _REMOTE,
    "SkyPilotBackend": _REMOTE,
    "UnslothAPI": MODULES["art.unsloth"],
    "auto_trajectory": _RECORDING,
    "capture_auto_trajectory": _RECORDING,
    "record_provenance": MODULES["art.utils.record_provenance"],
}

BACKEND: dict[str, tuple[str, str]] = {
    "_experimental_deploy": _EXPORT,
    "_experimental_fork_checkpoint": (
        "a fork is made by a command",
        "Run `art checkpoints fork RUN NAME --step N`.",
    ),
    "_experimental_pull_from_s3": _COPY,
    "_experimental_pull_model_checkpoint": _COPY,
    "_experimental_push_to_s3": _COPY,
    "adapter_lease": ("a step that a request uses stays loaded by itself", ""),
    "down": _REMOTE,
    "initialize_cluster": _REMOTE,
    "prune_model_adapters": (
        "the backend unloads old steps itself",
        'art_core.backend("local", served_steps=...) keeps more of them.',
    ),
}


def missing(name: str, table: dict[str, tuple[str, str]], owner: str) -> Exception:
    """Return the error for a name that a module or an object does not have."""
    if name not in table:
        return AttributeError(f"{owner} has no attribute {name!r}")
    reason, remedy = table[name]
    return MissingError(f"art-compat has no {owner}.{name}: {reason}", remedy)


class _MissingModules:
    """Finder of the modules of ART that are missing here."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Raise MissingError for one of them; other finders look for any other module."""
        if name in MODULES:
            owner, _, last = name.rpartition(".")
            raise missing(last, {last: MODULES[name]}, owner)
        return None


def explain_missing_modules() -> None:
    """Have imports of missing modules raise MissingError, once for this process."""
    if not any(isinstance(finder, _MissingModules) for finder in sys.meta_path):
        sys.meta_path.append(_MissingModules())
