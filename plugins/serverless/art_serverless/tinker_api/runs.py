"""Training runs: an adapter, its steps, and the log with what they cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from art_core import ConfigError, Model
from art_core.base.files import read_json, replace_json
from art_serverless.tinker_api.checkpoints import TinkerPath, folder, now
from art_serverless.tinker_api.meter import DeviceMeter
from art_serverless.tinker_api.wire import PassRequest, pass_output

ABOUT = "tinker.json"


@attrs.define(kw_only=True, eq=False)
class Since:
    """What was trained since the last optimizer step: sums, and why its gradient is not whole."""

    loss: float = 0.0
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0
    fault: str | None = None


@attrs.frozen(kw_only=True, eq=False)
class RunLog:
    """The log of what one owner used: rows in `<directory>/models/<its folder>/history.jsonl`."""

    owner: str
    model: Model
    meter: DeviceMeter
    primitives: Any

    @classmethod
    def open(
        cls, directory: Path, owner: str, base_model: str, meter: DeviceMeter, primitives: Any
    ) -> RunLog:
        """Open a log. A device without a price is reported now."""
        model = Model(
            name=folder(owner),
            project=directory.name,
            base_path=directory.parent,
            inference_model_name=base_model,
            sinks=[],
        )
        log = cls(owner=owner, model=model, meter=meter, primitives=primitives)
        log._charge(0.0)
        model.run  # noqa: B018 opened now: the first row's time begins here
        return log

    async def row(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Append the row of a step, with the device's time since the last; return its metrics."""
        self._charge(self.meter.take(self.owner))
        row = await self.model.log(split="train", step=step, metrics=metrics)
        return dict(row.metrics)

    async def close(self, status: str) -> None:
        """Charge the rest of the time, and close the log."""
        self._charge(self.meter.take(self.owner))
        await self.model.close(status=status)

    def _charge(self, seconds: float) -> None:
        for each in self.primitives.device_time(seconds):
            self.model.metrics_builder("train").add_gpu_time(each)


@attrs.define(kw_only=True, eq=False)
class TrainingRun:
    """A model that a client trains. Its methods that end in `_now` block, and run on the training
    thread, in the order of their requests.
    """

    id: str
    session_id: str
    base: Any
    rank: int
    adapter: Any
    log: RunLog
    primitives: Any
    user_metadata: dict[str, Any] | None = None
    step: int = 0
    since: Since = attrs.field(factory=Since)
    samplers: list[str] = attrs.field(factory=list)
    touched: Any = attrs.field(factory=now)

    def write_about(self) -> None:
        """Write what is known of the run beside its log."""
        replace_json(self.log.model.run_dir / ABOUT, self.about())

    def about(self) -> dict[str, Any]:
        """Return the run as the SDK describes it."""
        return {
            "training_run_id": self.id,
            "base_model": self.base.name,
            "model_owner": "local",
            "is_lora": True,
            "lora_rank": self.rank,
            "last_request_time": self.touched.isoformat(),
            "user_metadata": _texts(self.user_metadata),
        }

    def manifest(self) -> dict[str, Any]:
        """Return the entries of a checkpoint's manifest."""
        return {**self.base.identity.manifest(), "lora_rank": self.rank, "step": self.step}

    def pass_now(self, request: PassRequest) -> bytes:
        """Run a forward, and unless it is `forward_only` a backward pass. After one that fails the
        next optimizer step is refused, since its gradient would not be whole.
        """
        started = time.monotonic()
        try:
            return self._passed(request)
        except BaseException as error:
            if not request.forward_only:
                self.adapter.drop_gradients()
                self.since = Since(fault=str(error) or type(error).__name__)
            raise
        finally:
            self.since.seconds += time.monotonic() - started

    def _passed(self, request: PassRequest) -> bytes:
        loss = self.primitives.loss(request.loss, request.options)
        data = [self.primitives.datum(tokens, inputs, loss) for tokens, inputs in request.data]
        if not data:
            raise ConfigError("the request has no data")
        for datum in data:
            datum.check_tokens(self.base.vocabulary, self.base.engine.context_length)
        scored = self.adapter.forward_backward(data, loss, backward=not request.forward_only)
        total = float(sum(each.losses.sum(dtype="f8") for each in scored))
        tokens = sum(len(datum.tokens) for datum in data)
        if not request.forward_only:
            self.since.loss += total
            self.since.targets += sum(datum.targets.size for datum in data)
            self.since.tokens += tokens
        return pass_output(scored, {"loss:sum": total, "tokens:sum": float(tokens)})

    def step_now(self, adam: Any) -> dict[str, float]:
        """Take an optimizer step; return the metrics of its row, without costs."""
        since, self.since = self.since, Since()
        if since.fault is not None:
            raise ConfigError(
                f"no step was taken, since the forward_backward before it failed: {since.fault}",
                "Send that data again, then the step.",
            )
        if not since.tokens:
            raise ConfigError("no step was taken: there was no forward_backward since the last one")
        started = time.monotonic()
        norm = self.adapter.step(adam)
        self.step += 1
        return {
            "loss/train": since.loss / since.targets,
            "loss/grad_norm": norm,
            "loss/learning_rate": adam.learning_rate,
            "data/step_trainer_tokens": float(since.tokens),
            "time/step_trainer_s": since.seconds + time.monotonic() - started,
        }

    def load_now(self, path: TinkerPath, place: Path, manifest: Any, *, optimizer: bool) -> None:
        """Take the weights of a checkpoint; ConfigError for one of another base model or rank."""
        self.base.identity.check(str(path), manifest)
        if manifest["lora_rank"] != self.rank:
            raise ConfigError(
                f"{path} has rank {manifest['lora_rank']}, this model {self.rank}",
                "Create the training client from the checkpoint.",
            )
        self.adapter.load(place, optimizer=optimizer)
        self.step, self.since = manifest["step"], Since()


def described(directory: Path, checkpoints: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a run of this or of an earlier server, with its newest checkpoints; None without."""
    about = read_json(directory / ABOUT)
    if not about:
        return None
    newest = {each["checkpoint_type"]: each for each in checkpoints}
    return {
        **about,
        "last_checkpoint": newest.get("training"),
        "last_sampler_checkpoint": newest.get("sampler"),
    }


def _texts(metadata: dict[str, Any] | None) -> dict[str, str] | None:
    return None if metadata is None else {key: str(value) for key, value in metadata.items()}
