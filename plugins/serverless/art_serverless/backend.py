"""The serverless backend: models are trained and served by a service."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from art_core import (
    Checkpoint,
    ConfigError,
    Endpoint,
    Plugins,
    RegisteredModels,
    TrainConfig,
    TrainResult,
    Trajectory,
    TrajectoryGroup,
)
from art_core.rl.batch import no_critic, num_cut_off, training_batch
from art_core.rl.config import cap, check_options, optional, price
from art_core.rl.losses import PRESETS
from art_core.rl.sft import sft_config
from art_serverless.api import Api, is_wandb, service_key, service_url
from art_serverless.protocol import check_finite, check_names
from art_serverless.remote_model import Journal, RemoteModel, StepOptions
from art_serverless.wire import sft_groups

if TYPE_CHECKING:
    from art_core import TrainableModel


class ServerlessBackend:
    """Trains and serves models on a service (see `art_core.backends.Backend`).

    - `base_url`: of the service, ending in /v1; default `ART_BASE_URL`, else W&B Training.
    - `api_key`: default `WANDB_API_KEY` for W&B's addresses, `ART_API_KEY` for any other.
    - `entity`: the team that owns the models; default `WANDB_ENTITY`, else the service's choice.
    - `cost_per_hour_usd`: price of an hour of training, for `costs/gpu`; by default the costs that
      the service reports.
    - `request_timeout_s`, `register_timeout_s`: of one request, and of loading a model there.
    - `stall_timeout_s`: seconds without news of a job after which the step fails.
    - `progress`: show progress bars.

    Raises ConfigError for a missing key, and for an invalid URL, limit or price.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        entity: str | None = None,
        cost_per_hour_usd: float | None = None,
        request_timeout_s: float = 60.0,
        register_timeout_s: float = 900.0,
        stall_timeout_s: float = 1800.0,
        progress: bool = True,
    ) -> None:
        url = service_url(base_url)
        check_options(
            cap,
            request_timeout_s=request_timeout_s,
            register_timeout_s=register_timeout_s,
            stall_timeout_s=stall_timeout_s,
        )
        check_options(optional(price), cost_per_hour_usd=cost_per_hour_usd)
        self._api = Api(
            base_url=url, api_key=service_key(url, api_key), timeout_s=request_timeout_s
        )
        self._entity = entity or os.environ.get("WANDB_ENTITY") or None
        self._register_timeout_s = register_timeout_s
        self._step_options = StepOptions(
            cost_per_hour_usd=cost_per_hour_usd,
            stall_timeout_s=stall_timeout_s,
            progress=progress,
        )
        self._models: RegisteredModels[RemoteModel] = RegisteredModels("serverless")
        self._step_locks: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def register(self, model: TrainableModel) -> Endpoint:
        """Register the model with the service, which loads it at its last checkpoint, or fresh.

        If an earlier process left a training job, wait for it and log its metrics as a row.
        """
        self._models.check_open()
        record = await self._api.register(
            self._entity,
            model.project,
            model.name,
            model.base_model,
            timeout_s=self._register_timeout_s,
        )
        if record.base_model != model.base_model:
            raise ConfigError(
                f"model {model.name!r} is registered there with base model "
                f"{record.base_model!r}, this run asks for {model.base_model!r}",
                "Use that base model, or another model name.",
            )
        key = self._models.key(model)
        remote = self._models.get(key)
        if remote is None or remote.record != record:
            remote = RemoteModel(
                api=self._api,
                options=self._step_options,
                record=record,
                journal=Journal(model.run_dir),
                step_lock=self._step_locks[key],
            )
        await remote.resume(model)
        self._models[key] = remote
        return Endpoint(
            base_url=self._api.base_url,
            api_key=self._api.api_key,
            model_name=record.address.uri,
            step_suffix=":step{step}",
        )

    async def train(
        self, model: TrainableModel, groups: Sequence[TrajectoryGroup], **options: Any
    ) -> TrainResult:
        """Run one step at the service (`TrainConfig.of(**options)`), and wait for it.

        Cancelling this call does not stop the job: the next `train` or `register` finds it again.
        """
        remote = self._models.of(model)
        check_names(options)
        check_finite(options)
        counted = _counted(groups, options, model.plugins)
        result = await remote.train(model, groups, options)
        return attrs.evolve(result, metrics={**counted, **result.metrics})

    async def train_sft(
        self, model: TrainableModel, batches: Sequence[Sequence[Trajectory]], **options: Any
    ) -> TrainResult:
        """Run one step of supervised fine-tuning at an `art serve` (`sft_config(**options)`), and
        wait for it as `train` does. ConfigError for W&B Training, which lacks it in this form.
        """
        remote = self._models.of(model)
        if is_wandb(self._api.base_url):
            raise ConfigError(
                "W&B Training takes data of supervised fine-tuning only as the URL of an artifact, "
                "which this backend does not upload",
                "Train with an `art serve`, or with another backend.",
            )
        sft_config(**options)
        check_finite(options)
        return await remote.train_sft(model, sft_groups(batches), options)

    async def unregister(self, model: TrainableModel) -> None:
        """Forget the model here. The service keeps it, and unloads it when it is idle."""
        self._models.pop(self._models.key(model), None)

    async def step(self, model: TrainableModel) -> int:
        """Return the step of the newest weights."""
        return self._models.of(model).step

    async def checkpoints(self, model: TrainableModel) -> Sequence[Checkpoint]:
        """Return the checkpoints at the service, oldest first."""
        steps = await self._api.checkpoints(self._models.of(model).record.id)
        return [Checkpoint(step=step) for step in steps]

    async def delete_checkpoints(self, model: TrainableModel, keep: Collection[int]) -> list[int]:
        """Delete all checkpoints but those steps and the newest; return the deleted steps."""
        model_id = self._models.of(model).record.id
        steps = await self._api.checkpoints(model_id)
        unwanted = [step for step in steps[:-1] if step not in keep]
        return await self._api.delete_checkpoints(model_id, unwanted) if unwanted else []

    async def close(self) -> None:
        """Close the connections; jobs at the service continue. A second call does nothing."""
        self._models.closed = True
        self._models.clear()
        await self._api.close()


def _counted(
    groups: Sequence[TrajectoryGroup], options: dict[str, Any], offered: Plugins
) -> dict[str, float]:
    """Check the options, and return the metrics of the batch, which services may not report.

    Options with a loss or advantages that are not installed here are checked by the service only.
    For groups without token ids the result only counts the attempts that were cut off. Raises
    ConfigError for invalid options.
    """
    losses, advantages = offered.losses(), offered.advantages()
    cut_off = {"data/step_num_truncated": float(num_cut_off(groups))}
    if "learning_rate" in options:
        cut_off["loss/learning_rate"] = options["learning_rate"]
    known = options.get("advantage_fn") in {None, *advantages}
    if options.get("loss_fn", "cispo") not in {*PRESETS, *losses} or not known:
        return cut_off
    config = TrainConfig.of(losses, advantages, **options)
    if config.critic:
        raise no_critic()
    try:
        return cut_off | training_batch(groups, config, grammars=True).metrics
    except ConfigError:
        return cut_off
