"""Train LLM agents with GRPO on any backend; every step is a row of metrics with what it cost.

`import art_core as art`. Names resolve when they are first used, so that the import stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from art_core.backends import (
        BackendSpec,
        BaseModel,
        Bill,
        Checkpoint,
        Endpoint,
        EngineCatalog,
        InferenceEngine,
        ModelCatalog,
        TrainResult,
    )
    from art_core.base.errors import (
        ArtError,
        BackendError,
        BudgetError,
        ConfigError,
        EngineError,
        HistoryError,
        InfrastructureError,
        MetricError,
        PluginError,
        PricingError,
        RewardError,
        RolloutError,
        RolloutFailure,
        SinkError,
        StoppedError,
    )
    from art_core.base.retry import retry
    from art_core.budgets.budget import Budget, budget
    from art_core.checks.finding import CheckSpec, Finding
    from art_core.checks.watch import Watch
    from art_core.costs.builder import MetricsBuilder
    from art_core.costs.track import track_api_cost
    from art_core.data.dataset import DatasetBatch, iterate_dataset
    from art_core.data.gather import gather_trajectories, gather_trajectory_groups
    from art_core.data.sampler import ScenarioSampler
    from art_core.data.trajectory import History, Trajectory, TrajectoryGroup
    from art_core.environments.environment import Environment, rollout_of
    from art_core.environments.sandbox import (
        Sandbox,
        SandboxLimits,
        SandboxResult,
        code_sandbox,
        sandbox,
    )
    from art_core.environments.toolbox import Tool, Toolbox
    from art_core.evaluation.compare import Comparison, compare
    from art_core.evaluation.evaluate import Evaluation, evaluate
    from art_core.evaluation.retrain import Retrained, RetrainedStep, retrain
    from art_core.hooks.commands import Column, CommandSpec, Record, Table
    from art_core.hooks.doctor import doctor_sink
    from art_core.hooks.environments import EnvironmentSpec
    from art_core.hooks.hookspecs import hookimpl
    from art_core.hooks.host import Plugins
    from art_core.hooks.sandboxes import SandboxSpec
    from art_core.log.history import MetricsRow
    from art_core.log.reader import Costs, LoggedRun
    from art_core.log.timeline import Change, Timeline
    from art_core.metrics.receipt import GpuTime, Receipt, TokenRates, TokenUsage
    from art_core.metrics.taxonomy import MetricSpec
    from art_core.model.backend import Backend, RegisteredModels, backend
    from art_core.model.model import Model
    from art_core.model.teacher import Teacher, teacher
    from art_core.model.trainable import TrainableModel
    from art_core.pipelines.config import PipelineConfig
    from art_core.pipelines.pipeline import PipelineResult, pipeline
    from art_core.reports.open_run import open_run
    from art_core.rewards.combined import reward
    from art_core.rewards.judge import Judge
    from art_core.rewards.ruler import ruler, ruler_score_group
    from art_core.rl.advantages import AdvantageSpec
    from art_core.rl.config import TrainConfig
    from art_core.rl.losses import LossSpec, LossTokens
    from art_core.rl.schedules import Schedule
    from art_core.run.checkpoints import StoredSteps, keep_all, keep_every, keep_recent_and_top
    from art_core.sinks.console import console_sink
    from art_core.sinks.protocol import CurrentLine, RunInfo, Sink, SinkSpec

__version__ = "0.2.0"

_HOME = {
    "backends": (
        "BackendSpec",
        "BaseModel",
        "Bill",
        "Checkpoint",
        "Endpoint",
        "EngineCatalog",
        "InferenceEngine",
        "ModelCatalog",
        "TrainResult",
    ),
    "costs.track": ("track_api_cost",),
    "base.retry": ("retry",),
    "budgets.budget": ("Budget", "budget"),
    "data.dataset": ("DatasetBatch", "iterate_dataset"),
    "data.sampler": ("ScenarioSampler",),
    "data.gather": ("gather_trajectories", "gather_trajectory_groups"),
    "data.trajectory": ("History", "Trajectory", "TrajectoryGroup"),
    "base.errors": (
        "ArtError",
        "BackendError",
        "BudgetError",
        "ConfigError",
        "EngineError",
        "HistoryError",
        "InfrastructureError",
        "MetricError",
        "PluginError",
        "PricingError",
        "RewardError",
        "RolloutError",
        "RolloutFailure",
        "SinkError",
        "StoppedError",
    ),
    "checks.finding": ("CheckSpec", "Finding"),
    "checks.watch": ("Watch",),
    "costs.builder": ("MetricsBuilder",),
    "metrics.receipt": ("GpuTime", "Receipt", "TokenRates", "TokenUsage"),
    "metrics.taxonomy": ("MetricSpec",),
    "log.history": ("MetricsRow",),
    "log.reader": ("Costs", "LoggedRun"),
    "log.timeline": ("Change", "Timeline"),
    "model.backend": ("Backend", "RegisteredModels", "backend"),
    "model.model": ("Model",),
    "model.teacher": ("Teacher", "teacher"),
    "pipelines.config": ("PipelineConfig",),
    "pipelines.pipeline": ("PipelineResult", "pipeline"),
    "environments.environment": ("Environment", "rollout_of"),
    "environments.sandbox": (
        "Sandbox",
        "SandboxLimits",
        "SandboxResult",
        "code_sandbox",
        "sandbox",
    ),
    "environments.toolbox": ("Tool", "Toolbox"),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "evaluation.retrain": ("Retrained", "RetrainedStep", "retrain"),
    "hooks.commands": ("Column", "CommandSpec", "Record", "Table"),
    "hooks.doctor": ("doctor_sink",),
    "hooks.environments": ("EnvironmentSpec",),
    "hooks.hookspecs": ("hookimpl",),
    "hooks.host": ("Plugins",),
    "hooks.sandboxes": ("SandboxSpec",),
    "reports.open_run": ("open_run",),
    "rewards.combined": ("reward",),
    "rewards.judge": ("Judge",),
    "rewards.ruler": ("ruler", "ruler_score_group"),
    "rl.advantages": ("AdvantageSpec",),
    "rl.config": ("TrainConfig",),
    "rl.losses": ("LossSpec", "LossTokens"),
    "rl.schedules": ("Schedule",),
    "run.checkpoints": (
        "StoredSteps",
        "keep_all",
        "keep_every",
        "keep_recent_and_top",
    ),
    "sinks.console": ("console_sink",),
    "sinks.protocol": ("CurrentLine", "RunInfo", "Sink", "SinkSpec"),
    "model.trainable": ("TrainableModel",),
}
_MODULE_OF = {name: f"art_core.{module}" for module, names in _HOME.items() for name in names}

__all__ = [
    "AdvantageSpec",
    "ArtError",
    "Backend",
    "BackendError",
    "BackendSpec",
    "BaseModel",
    "Bill",
    "Budget",
    "BudgetError",
    "Change",
    "CheckSpec",
    "Checkpoint",
    "Column",
    "CommandSpec",
    "Comparison",
    "ConfigError",
    "Costs",
    "CurrentLine",
    "DatasetBatch",
    "Endpoint",
    "EngineCatalog",
    "EngineError",
    "Environment",
    "EnvironmentSpec",
    "Evaluation",
    "Finding",
    "GpuTime",
    "History",
    "HistoryError",
    "InferenceEngine",
    "InfrastructureError",
    "Judge",
    "LoggedRun",
    "LossSpec",
    "LossTokens",
    "MetricError",
    "MetricSpec",
    "MetricsBuilder",
    "MetricsRow",
    "Model",
    "ModelCatalog",
    "PipelineConfig",
    "PipelineResult",
    "PluginError",
    "Plugins",
    "PricingError",
    "Receipt",
    "Record",
    "RegisteredModels",
    "Retrained",
    "RetrainedStep",
    "RewardError",
    "RolloutError",
    "RolloutFailure",
    "RunInfo",
    "Sandbox",
    "SandboxLimits",
    "SandboxResult",
    "SandboxSpec",
    "ScenarioSampler",
    "Schedule",
    "Sink",
    "SinkError",
    "SinkSpec",
    "StoppedError",
    "StoredSteps",
    "Table",
    "Teacher",
    "Timeline",
    "TokenRates",
    "TokenUsage",
    "Tool",
    "Toolbox",
    "TrainConfig",
    "TrainResult",
    "TrainableModel",
    "Trajectory",
    "TrajectoryGroup",
    "Watch",
    "backend",
    "budget",
    "code_sandbox",
    "compare",
    "console_sink",
    "doctor_sink",
    "evaluate",
    "gather_trajectories",
    "gather_trajectory_groups",
    "hookimpl",
    "iterate_dataset",
    "keep_all",
    "keep_every",
    "keep_recent_and_top",
    "open_run",
    "pipeline",
    "retrain",
    "retry",
    "reward",
    "rollout_of",
    "ruler",
    "ruler_score_group",
    "sandbox",
    "teacher",
    "track_api_cost",
]


def __getattr__(name: str) -> Any:
    if name == "LocalBackend":  # ART has it in its core
        from art_core.hooks.host import installed_plugins
        from art_core.model.backend import creator

        return creator(installed_plugins().backend("local"))
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'art_core' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
