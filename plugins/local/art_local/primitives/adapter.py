"""A LoRA adapter over a loaded base model, moved by gradients and optimizer steps one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from art_core.base.errors import BackendError
from art_local.primitives.datum import MASK, Datum, Loss, Scored
from art_local.training.batches import plan
from art_local.training.finite import not_finite
from art_local.training.losses import Tokens, log_ratios, token_losses
from art_local.training.policy import Policy
from art_local.training.trainer import CHUNK_ROWS, MICRO_BATCH_TOKENS

OPTIMIZER = "optimizer.safetensors"
Turn = Callable[[], AbstractContextManager[Any]]


@attrs.frozen(kw_only=True)
class AdamStep:
    """What one step of AdamW takes. A `grad_clip_norm` of 0 clips nothing."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


class Adapter:
    """A policy with its gradients and its optimizer state. Methods block; call them from one
    thread. `turn` is entered around each pass on the device.
    """

    def __init__(self, policy: Policy, base_model: str, turn: Turn) -> None:
        self.policy = policy
        self._base_model, self._turn = base_model, turn
        self._parameters = policy.trained()
        self._optimizer = torch.optim.AdamW(self._parameters.values(), weight_decay=0.0)

    @property
    def serving(self) -> Mapping[str, Tensor]:
        """The merged weights as they are now, by base parameter name; later steps make new ones."""
        return self.policy.serving

    def forward_backward(
        self, data: Sequence[Datum], loss: Loss, *, backward: bool
    ) -> list[Scored]:
        """Score the targets of all data and, with `backward`, add the gradient of the sum of their
        losses to those before. If it fails, the gradients of earlier calls are dropped too.
        """
        found: list[Scored | None] = [None] * len(data)
        budget = MICRO_BATCH_TOKENS.get(self.policy.device.type, 8192)
        lengths = [len(datum.tokens) for datum in data]
        try:
            for group in self.policy.rotary.groups(lengths):
                for part in plan([lengths[i] for i in group], budget):
                    places = [group[i] for i in part]
                    with self._turn():
                        scored = self._pass([data[i] for i in places], loss, backward=backward)
                    for place, each in zip(places, scored, strict=True):
                        found[place] = each
        except BaseException:
            self.drop_gradients()
            raise
        return [each for each in found if each is not None]

    def drop_gradients(self) -> None:
        """Forget the gradients so far."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self, given: AdamStep) -> float:
        """Take a step of AdamW and drop the gradients; return their norm before clipping.

        Raises BackendError if the gradient or the new weights are not finite; weights and moments
        then stay as they were.
        """
        limit = given.grad_clip_norm or float("inf")
        before = self.policy.kept(), self._state()
        with self._turn():
            try:
                norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit))
                if not torch.isfinite(torch.tensor(norm)):
                    raise BackendError(
                        f"the gradient's norm is {norm}; the weights stay as they were"
                    )
                for group in self._optimizer.param_groups:
                    group.update(
                        lr=given.learning_rate, betas=(given.beta1, given.beta2), eps=given.eps,
                        weight_decay=given.weight_decay,
                    )  # fmt: skip
                self._optimizer.step()
                self._check(given.learning_rate)
                self.policy.refresh()
            except BaseException:
                self.policy.put_back(before[0])
                self._set_state(before[1])
                raise
            finally:
                self.drop_gradients()
        return norm

    def save(self, directory: Path, *, optimizer: bool) -> None:
        """Write the adapter in peft's format and, if asked for, the optimizer's state."""
        self.policy.save(directory, self._base_model)
        if optimizer:
            save_file(self._state(), directory / OPTIMIZER)

    def load(self, directory: Path, *, optimizer: bool) -> None:
        """Set the weights that `save` wrote, with the optimizer's state or a fresh one; drop the
        gradients. BackendError for weights of another model or rank.
        """
        state: Mapping[str, Tensor] = {}
        if optimizer:
            if not (directory / OPTIMIZER).exists():
                raise BackendError(
                    "this checkpoint has no optimizer state", "Load its weights only."
                )
            state = load_file(directory / OPTIMIZER)
        with self._turn():
            self.policy.load(self.policy.read(directory), directory)
        self.drop_gradients()
        self._set_state(state)

    def serving_of(self, directory: Path) -> dict[str, Tensor]:
        """Return the merged weights of a saved adapter of the same rank."""
        with self._turn():
            return self.policy.serving_of(self.policy.read(directory))

    def _pass(self, data: Sequence[Datum], loss: Loss, *, backward: bool) -> list[Scored]:
        rows = _Rows.of(data, self.policy.device)
        with torch.set_grad_enabled(backward):
            logprobs_R, entropies_R = self.policy.logprobs(
                rows.ids_BS,
                rows.rows_R,
                rows.targets_R,
                chunk_size=CHUNK_ROWS.get(self.policy.device.type, 512),
            )
            losses_R = _losses(loss, logprobs_R, entropies_R.detach(), rows)
            total = losses_R.sum()
        if not torch.isfinite(total):
            raise BackendError(f"the sum of the losses is {float(total)}; no gradient was added")
        if backward:
            total.backward()  # type: ignore[no-untyped-call]
        return rows.apart(logprobs_R.detach(), losses_R.detach())

    def _check(self, learning_rate: float) -> None:
        values = {name: parameter.detach() for name, parameter in self._parameters.items()}
        if odd := not_finite(values):
            raise BackendError(
                f"the step does not count: after it {len(odd)} parameters are not finite or too "
                f"large, {odd[0]!r} first; the weights stay as they were",
                f"Lower learning_rate (now {learning_rate:g}).",
            )

    def _state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `<kind>.<parameter>` tensors, copied to the CPU."""
        return {
            f"{kind}.{name}": value.detach().to("cpu", copy=True)
            for name, parameter in self._parameters.items()
            for kind, value in self._optimizer.state.get(parameter, {}).items()
        }

    def _set_state(self, stored: Mapping[str, Tensor]) -> None:
        self._optimizer.state.clear()
        for key, value in stored.items():
            kind, _, name = key.partition(".")
            parameter = self._parameters.get(name)
            if parameter is None or (kind != "step" and value.shape != parameter.shape):
                raise BackendError(f"the optimizer state is not that of this model: {key!r}")
            where = value.device if kind == "step" else parameter.device
            self._optimizer.state[parameter][kind] = value.to(where, copy=True)


@attrs.frozen(kw_only=True, eq=False)
class _Rows:
    """Data as tensors: B padded rows of S tokens, R targets at flat positions in [B*S]."""

    data: Sequence[Datum]
    ids_BS: Tensor
    rows_R: Tensor
    targets_R: Tensor
    sequences_R: Tensor

    @classmethod
    def of(cls, data: Sequence[Datum], device: torch.device) -> _Rows:
        width = max(len(datum.tokens) for datum in data)
        ids_BS = torch.zeros((len(data), width), dtype=torch.long)
        rows, owners = [], []
        for b, datum in enumerate(data):
            size = len(datum.tokens)
            ids_BS[b, :size] = torch.from_numpy(datum.tokens)
            each = datum.targets.size // size
            rows.append(torch.arange(size).repeat_interleave(each) + b * width)
            owners.append(torch.full((datum.targets.size,), b))
        targets = [torch.from_numpy(datum.targets).flatten() for datum in data]
        return cls(
            data=data,
            ids_BS=ids_BS.to(device),
            rows_R=torch.cat(rows).to(device),
            targets_R=torch.cat(targets).to(device),
            sequences_R=torch.cat(owners).to(device),
        )

    def values(self, name: str, default: float) -> Tensor:
        """Return an input of all data [R]; the default where a datum has none."""
        parts = [
            torch.from_numpy(datum.inputs[name]).flatten().float()
            if name in datum.inputs
            else torch.full((datum.targets.size,), default)
            for datum in self.data
        ]
        return torch.cat(parts).to(self.ids_BS.device)

    def apart(self, logprobs_R: Tensor, losses_R: Tensor) -> list[Scored]:
        """Return what was computed for each datum."""
        sizes = [datum.targets.size for datum in self.data]
        parts = (value.float().cpu().split(sizes) for value in (logprobs_R, losses_R))
        return [
            Scored(
                logprobs=logprobs.numpy().reshape(datum.targets.shape),
                losses=losses.numpy().reshape(datum.targets.shape),
            )
            for datum, logprobs, losses in zip(self.data, *parts, strict=True)
        ]


def _losses(loss: Loss, logprobs_R: Tensor, entropies_R: Tensor, rows: _Rows) -> Tensor:
    """Return the loss of each target [R], by the trainer's own formulas.

    `dro`: -(A log p - beta / 2 * (log p - log q)^2). `gspo` takes the ratio of a sequence over the
    targets whose mask is not 0.
    """
    if loss.name == "cross_entropy":
        return -logprobs_R * rows.values("weights", 1.0)
    old_R, advantages_R = rows.values("logprobs", 0.0), rows.values("advantages", 0.0)
    if loss.name == "dro":
        apart_R = log_ratios(logprobs_R, old_R)
        return loss.options["beta"] / 2 * apart_R.square() - logprobs_R * advantages_R
    unmasked_R = rows.values(MASK, 1.0) != 0
    tokens = Tokens(
        logprobs_R=logprobs_R[unmasked_R],
        old_logprobs_R=old_R[unmasked_R],
        advantages_R=advantages_R[unmasked_R],
        weights_R=torch.ones_like(advantages_R[unmasked_R]),
        sequences_R=rows.sequences_R[unmasked_R],
        entropies_R=entropies_R[unmasked_R],
    )
    losses_R = torch.zeros_like(logprobs_R)
    return losses_R.masked_scatter(unmasked_R, token_losses(loss.preset, tokens).losses_R)
