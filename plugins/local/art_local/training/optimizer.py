"""AdamW that shows a step before it is taken, so that no copy of the weights has to be kept.

Its state is a flat dict of tensors: a checkpoint needs no pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import BackendError

BETAS, EPSILON = (0.9, 0.99), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = (*MOMENTS, "step")


@attrs.frozen(kw_only=True, eq=False)
class Update:
    """A parameter's weight and moments, by kind, after a step that was not taken yet. One without a
    gradient keeps its weight and has no new moments.
    """

    name: str
    weight: Tensor
    moments: Mapping[str, Tensor]


@attrs.define(kw_only=True, eq=False)
class _State:
    """A parameter's moments, and how many steps made them."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int = 0

    @classmethod
    def zero(cls, parameter: Tensor) -> _State:
        return cls(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))


Accept = Callable[[Iterator[Update]], None]


class Optimizer:
    """AdamW (0.9, 0.99) over named parameters, its state readable and settable by parameter
    name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._states: dict[str, _State] = {}

    def step(
        self, learning_rate: float, max_grad_norm: float, accept: Accept | None = None
    ) -> float:
        """Clip the gradient's global norm, take a step, drop the gradients; return the norm before
        clipping.

        `accept` is given what the step would make of the parameters, one at a time. When it raises,
        weights and moments stay as they were. After it nothing is allocated, so that a step is
        taken whole. Raises BackendError for a gradient that is not finite.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), max_grad_norm))
        try:
            if not torch.isfinite(torch.tensor(norm)):
                raise BackendError(
                    f"the gradient's norm is {norm}; the weights stay as they were",
                    "Lower learning_rate, or look for log-probs that are not finite in "
                    "the last rollouts.",
                )
            with self._begun():
                if accept is not None:
                    accept(self._updates(learning_rate))
            self._apply(learning_rate)
        finally:
            self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Forget gradients accumulated so far."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Allocate the moments of parameters that have none; an error in the block drops them."""
        before = dict(self._states)
        try:
            for name, parameter in self._parameters.items():
                if parameter.grad is not None and name not in self._states:
                    self._states[name] = _State.zero(parameter.detach())
            yield
        except BaseException:
            self._states = before
            raise

    def _updates(self, learning_rate: float) -> Iterator[Update]:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                yield Update(name=name, weight=parameter.data, moments={})
            else:
                yield self._update(name, parameter.data, parameter.grad, learning_rate)

    def _update(self, name: str, weight: Tensor, gradient: Tensor, learning_rate: float) -> Update:
        state = self._states[name]
        size, root = _step_size(learning_rate, state.step + 1)
        average = torch.lerp(state.exp_avg, gradient, 1 - BETAS[0])
        squares = state.exp_avg_sq.mul(BETAS[1])
        squares.addcmul_(gradient, gradient, value=1 - BETAS[1])
        divisor = squares.sqrt().div_(root).add_(EPSILON)
        moved = torch.addcdiv(weight, average, divisor, value=-size)
        return Update(name=name, weight=moved, moments={"exp_avg": average, "exp_avg_sq": squares})

    @torch.no_grad()
    def _apply(self, learning_rate: float) -> None:
        """Take the step in place; the gradients' memory is used for intermediate results."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self._states[name]
            state.step += 1
            size, root = _step_size(learning_rate, state.step)
            state.exp_avg.lerp_(gradient, 1 - BETAS[0])
            state.exp_avg_sq.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            torch.sqrt(state.exp_avg_sq, out=gradient).div_(root).add_(EPSILON)
            parameter.addcdiv_(state.exp_avg, gradient, value=-size)

    def moments(self) -> dict[str, Tensor]:
        """Return the moments by name, not copied."""
        return {
            f"{kind}.{name}": getattr(self._states[name], kind)
            for name in self._parameters
            if name in self._states
            for kind in MOMENTS
        }

    def state(self) -> dict[str, Tensor]:
        """Return the state as `<kind>.<parameter>` tensors; empty before the first step."""
        found = {name: moment.cpu() for name, moment in self.moments().items()}
        for name, state in self._states.items():
            found[f"step.{name}"] = torch.tensor(float(state.step))
        return found

    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Set the state. What is missing in it is zero, as for a parameter that never had a
        gradient; an empty state starts afresh. BackendError when a name or shape does not fit.
        """
        shapes = {
            f"{kind}.{name}": torch.Size() if kind == "step" else parameter.shape
            for name, parameter in self._parameters.items()
            for kind in STATE
        }
        misfits = [name for name, t in tensors.items() if shapes.get(name) != t.shape]
        if misfits:
            raise BackendError(
                f"the optimizer state in {source} is not that of this model: {len(misfits)} "
                "tensors differ, "
                f"{min(misfits)!r} first",
                "Use the options of that run, or another model name.",
            )
        self._states.clear()
        for name, parameter in self._parameters.items():
            if any(f"{kind}.{name}" in tensors for kind in STATE):
                self._states[name] = _loaded(tensors, name, parameter.detach())


def _loaded(tensors: Mapping[str, Tensor], name: str, parameter: Tensor) -> _State:
    state = _State.zero(parameter)
    for kind in MOMENTS:
        if (stored := tensors.get(f"{kind}.{name}")) is not None:
            getattr(state, kind).copy_(stored)
    state.step = int(tensors.get(f"step.{name}", 0))
    return state


def _step_size(learning_rate: float, step: int) -> tuple[float, float]:
    """Return the learning rate and the root of the second moment's divisor, both corrected for
    moments that began at zero (Kingma and Ba, 1412.6980, algorithm 1).
    """
    return learning_rate / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step) ** 0.5
