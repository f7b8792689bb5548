"""ART's models: those of art-core, with ART's arguments, attributes and methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import attrs

import art_core
from art._dumps import PydanticMethods, plain
from art._heard import Heard
from art._options import merged, sft_options, train_options
from art.backend import Backend
from art.trajectories import TrajectoryGroup
from art.types import TrainConfig, TrainSFTConfig
from art_core.base.files import replace_json

DUMPED = (
    "name", "project", "entity", "id", "run_id", "config", "trainable", "inference_api_key",
    "inference_base_url", "inference_model_name", "base_path", "report_metrics",
)  # fmt: skip


@attrs.define(kw_only=True, eq=False, slots=False)
class Model(PydanticMethods, art_core.Model):
    """A model under a name in a project, whose rollouts are logged.

    `config` may be a Pydantic model. `report_metrics` are names of sinks.
    """

    config: Any = None
    entity: str | None = None
    id: str | None = None
    run_id: str | None = None
    report_metrics: list[str] | None = None

    def __class_getitem__(cls, _: Any) -> type[Self]:
        return cls

    def __attrs_post_init__(self) -> None:
        if self.report_metrics is not None and self.sinks is None:
            self.sinks = self.report_metrics
        if self.config is None:
            self.config = {}
        super().__attrs_post_init__()

    @property
    def trainable(self) -> bool:
        """Whether the model has weights that a backend trains."""
        return self._trainable

    async def register(self, backend: Backend) -> None:
        """Log where a backend's models are logged."""
        self._log_at(backend.path)

    def _log_at(self, path: str | None) -> None:
        if path is not None and self._run is None:
            self.base_path = path
            self._runs = Path(path).absolute()

    def endpoint(self) -> art_core.Endpoint:
        """Return the endpoint that serves the model, by default under the model's name."""
        if self.inference_base_url and not self.inference_model_name:
            self.inference_model_name = self.name
        return super().endpoint()

    def get_inference_name(self, step: int | None = None) -> str:
        """Return the model name to put into requests."""
        if not self.inference_base_url:
            name = self.inference_model_name or self.name
            return name if step is None else f"{name}@{step}"
        return super().get_inference_name(step)

    def litellm_completion_params(self, step: int | None = None) -> dict[str, Any]:
        """Return arguments for `litellm.completion`."""
        name = self.get_inference_name(step)
        return {
            "model": f"hosted_vllm/{name}" if self.trainable else name,
            "base_url": self.inference_base_url,
            "api_key": self.inference_api_key,
            "temperature": 1,
        }

    async def log(
        self,
        trajectories: Iterable[Any] | None = None,
        split: str = "val",
        *,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> art_core.MetricsRow:
        """Store groups, or trajectories and exceptions, and write a row of metrics."""
        items = list(trajectories or ())
        loose = not any(isinstance(item, art_core.TrajectoryGroup) for item in items)
        groups = [TrajectoryGroup(items)] if items and loose else items
        return await super().log(groups, split, metrics=metrics, step=step)

    def overwrite_state(self, state: Mapping[str, Any]) -> None:
        """Replace the run's stored values."""
        replace_json(self.run.info.run_dir / "state.json", dict(state))

    write_state = overwrite_state

    def merge_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Merge values into those that are stored, nested ones too."""
        return super().merge_state(merged(super().read_state(), state))

    def read_state(self) -> dict[str, Any] | None:  # type: ignore[override]
        """Return the stored values; None if there are none."""
        return super().read_state() or None

    def update_wandb_config(self, config: Mapping[str, Any]) -> None:
        """Add facts about the run, before its first row; ConfigError afterwards."""
        if self._run is not None:
            raise art_core.ConfigError(
                f"the run {self._run.name} has begun, and its config is written",
                "Call update_wandb_config before register, or give the model config=...",
            )
        self.config = merged(plain(self.config), config)

    def activate_metrics_context(self, cost_context: str) -> Any:
        """Make the builder of a context the active one; return a token."""
        return self.metrics_builder(cost_context).activate()

    def _dumped_names(self) -> list[str]:
        return list(DUMPED)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the attributes that ART stores, as plain values."""
        return super().model_dump(**options)

    def safe_model_dump(self, **options: Any) -> dict[str, Any]:
        """Return the attributes without the config."""
        return {**self.model_dump(**options), "config": None}

    def model_copy(self, *, update: dict[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a model with other arguments. `deep` is not read: runs are not copied."""
        made = ("sinks",) if self.report_metrics is not None else ()
        kept = [f for f in attrs.fields(type(self)) if f.init and f.name not in made]
        values = {f.alias: getattr(self, f.name) for f in kept}
        return type(self)(**{**values, **(update or {})})


@attrs.define(kw_only=True, eq=False, slots=False)
class TrainableModel(Model, art_core.TrainableModel):
    """A model whose weights a backend trains and serves. All its checkpoints stay, until
    `delete_checkpoints`.
    """

    _internal_config: Mapping[str, Any] | None = attrs.field(default=None, alias="_internal_config")
    keep_checkpoints: Any = attrs.field(factory=art_core.keep_all)
    _theirs: Backend | None = attrs.field(default=None, init=False, repr=False)
    _heard: Heard | None = attrs.field(default=None, init=False, repr=False)

    @property
    def internal_config(self) -> Mapping[str, Any]:
        """The model's unstable options; empty without any."""
        return self._internal_config or {}

    async def register(  # type: ignore[override]
        self, backend: Backend, _openai_client_config: Mapping[str, Any] | None = None
    ) -> None:
        """Have a backend load the model and serve it."""
        given = dict(_openai_client_config or {})
        if given.get("engine_args"):
            asked = {"engine_args": given["engine_args"]}
            self._internal_config = merged(self.internal_config, asked)
        self._log_at(backend.path)
        await art_core.TrainableModel.register(self, backend.of(self))
        self._theirs = backend
        endpoint = self.endpoint()
        self.inference_base_url, self.inference_api_key = endpoint.base_url, endpoint.api_key
        self.inference_model_name = endpoint.model_name

    def endpoint(self) -> art_core.Endpoint:
        """Return the endpoint that serves the model; ConfigError before `register`."""
        return art_core.TrainableModel.endpoint(self)

    def openai_client(self) -> Any:
        """Return an OpenAI client, whose requests have the model's `chat_template_kwargs`."""
        client = super().openai_client()
        template = self.internal_config.get("chat_template_kwargs")
        completions = client.chat.completions
        if template and not isinstance(completions.create, partial):
            create: Any = partial(_create_with, completions.create, dict(template))
            completions.create = create  # type: ignore[method-assign]
        return client

    def litellm_completion_params(self, step: int | None = None) -> dict[str, Any]:
        """Return arguments for `litellm.completion`. A recording keeps the token ids of answers,
        for the choices that `convert_litellm_choice_to_openai` makes of them.
        """
        params = super().litellm_completion_params(step)
        if self._theirs is None:
            return params
        if self._heard is None:
            self._heard = Heard(self)
        heard = self._heard.endpoint
        return {**params, "base_url": heard.base_url, "api_key": heard.api_key}

    def with_tokens(self, groups: Iterable[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """Return groups after answers that litellm got have their token ids again."""
        listed = list(groups)
        if self._heard is not None:
            self._heard.fill(listed)
        return listed

    async def close(self, *args: Any, **options: Any) -> Any:
        """End the recording, and close the run as art-core's models do."""
        if self._heard is not None:
            self._heard.close()
            self._heard = None
        return await super().close(*args, **options)

    async def train(  # type: ignore[override]
        self,
        trajectory_groups: Iterable[TrajectoryGroup],
        config: TrainConfig | None = None,
        _config: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> art_core.TrainResult:
        """Train a step on the groups, and log them and its metrics as one row."""
        theirs = self._registered()
        given = {} if config is None else config.model_dump(exclude_unset=True)
        options = train_options({**given, **(_config or {})}, theirs.train_defaults(self))
        groups = self.with_tokens(trajectory_groups)
        return await art_core.TrainableModel.train(self, groups, **options)

    async def train_sft(  # type: ignore[override]
        self,
        trajectories: Iterable[art_core.Trajectory],
        config: TrainSFTConfig | None = None,
        _config: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> art_core.TrainResult:
        """Train on given conversations, in their order, as one step."""
        options = sft_options(config or TrainSFTConfig())
        return await art_core.TrainableModel.train_sft(self, list(trajectories), **options)

    async def delete_checkpoints(self, best_checkpoint_metric: str = "val/reward") -> list[int]:
        """Delete all checkpoints but the newest and the best by a metric; return the steps.

        As in ART, only the newest stays while no step with a checkpoint has the metric.
        """
        theirs = self._registered()
        try:
            keep = {await self.best_checkpoint(best_checkpoint_metric)}
        except art_core.ConfigError:
            keep = {await self.get_step()}
        return await theirs.of(self).delete_checkpoints(self, keep)

    def _registered(self) -> Backend:
        if self._theirs is None:
            raise art_core.ConfigError(
                f"model {self.name!r} is not registered",
                "Call await model.register(backend) first.",
            )
        return self._theirs

    def set_cost_calculator(self, calculator: Any) -> None:
        """Raise ConfigError for a calculator: prices come from price books."""
        if calculator is not None:
            raise art_core.ConfigError(
                "art-core has no cost calculators",
                "A price book prices tokens: docs/write-a-price-book.md.",
            )

    def _dumped_names(self) -> list[str]:
        return [*DUMPED, "base_model", "_internal_config"]


async def _create_with(create: Any, template: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    defaults = {"chat_template_kwargs": template}
    kwargs["extra_body"] = merged(defaults, kwargs.get("extra_body") or {})
    return await create(*args, **kwargs)
