"""An optimizer that shows a step before it is taken, so that no copy of the weights has to be kept.

Its state is a flat dict of tensors: a checkpoint needs no pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import BackendError, ConfigError
from art_local.training.rules import MIN_8BIT, AdamW, AdamW8bit, Muon, Rate, Rule

MARK = "optimizer"
"""The tensor of a stored state with the optimizer's name, as bytes; AdamW's state has none."""


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
    """A parameter's tensors by kind, such as its moments, and how many steps made them."""

    tensors: dict[str, Tensor]
    step: int = 0


Accept = Callable[[Iterator[Update]], None]
Clip = Callable[[Iterable[nn.Parameter], float], Tensor]


class Optimizer:
    """An optimizer by name over named parameters, its state readable and settable by parameter
    name.

    `matrices` are the parameters that Muon moves, AdamW moves the others; None where Muon makes no
    sense, for LoRA. `clip` limits the norm of the gradients and returns what it was.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        matrices: Collection[str] | None = None,
        *,
        clip: Clip = nn.utils.clip_grad_norm_,
    ) -> None:
        self._clip = clip
        self._parameters = dict(parameters)
        self._matrices = matrices
        self._states: dict[str, _State] = {}
        self.name = "adamw"
        self._rules: dict[str, Rule] = dict.fromkeys(self._parameters, AdamW())

    def use(self, name: str) -> None:
        """Use the optimizer of that name from the first step on.

        Raises ConfigError for another one than that of earlier steps, and for one that is not
        available here.
        """
        if name == self.name:
            return
        if self._states:
            steps = max(state.step for state in self._states.values())
            raise ConfigError(
                f"the {steps} optimizer steps of this model were taken by optimizer="
                f"{self.name!r}, and this one asks for {name!r}: its state does not fit",
                f"Give optimizer={self.name!r}, or train under another model name.",
            )
        self._rules = self._rules_of(name)
        self.name = name

    def _rules_of(self, name: str) -> dict[str, Rule]:
        adamw = AdamW()
        rules: dict[str, Rule] = dict.fromkeys(self._parameters, adamw)
        if name == "muon":
            if self._matrices is None:
                raise ConfigError(
                    "optimizer='muon' needs full_finetune=True: it makes the update of a whole "
                    "weight matrix orthogonal, and LoRA trains two thin factors of it",
                    "Use optimizer='adamw' for LoRA.",
                )
            rules.update(dict.fromkeys(self._matrices, Muon()))
        elif name == "adamw_8bit":
            rule = AdamW8bit()
            large = [n for n, p in self._parameters.items() if p.numel() >= MIN_8BIT]
            rules.update(dict.fromkeys(large, rule))
        return rules

    def step(
        self,
        learning_rate: float,
        max_grad_norm: float,
        accept: Accept | None = None,
        weight_decay: float = 0.0,
    ) -> float:
        """Clip the gradient's global norm, take a step, drop the gradients; return the norm before
        clipping.

        `accept` is given what the step would make of the parameters, one at a time. When it raises,
        weights and moments stay as they were. After it AdamW allocates nothing, so that a step is
        taken whole. Raises BackendError for a gradient that is not finite.
        """
        rate = Rate(learning_rate, weight_decay)
        norm = float(self._clip(self._parameters.values(), max_grad_norm))
        try:
            if not torch.isfinite(torch.tensor(norm)):
                raise BackendError(
                    f"the gradient's norm is {norm}; the weights stay as they were",
                    "Lower learning_rate, or look for log-probs that are not finite in "
                    "the last rollouts.",
                )
            with self._begun():
                if accept is not None:
                    accept(self._updates(rate))
            self._apply(rate)
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
                    self._states[name] = self._zero(name)
            yield
        except BaseException:
            self._states = before
            raise

    def _zero(self, name: str) -> _State:
        return _State(tensors=self._rules[name].zero(self._parameters[name].detach()))

    def _updates(self, rate: Rate) -> Iterator[Update]:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                yield Update(name=name, weight=parameter.data, moments={})
            else:
                yield self._update(name, parameter.data, parameter.grad, rate)

    def _update(self, name: str, weight: Tensor, gradient: Tensor, rate: Rate) -> Update:
        state = self._states[name]
        moved, moments = self._rules[name].propose(
            weight, gradient, state.tensors, state.step + 1, rate
        )
        return Update(name=name, weight=moved, moments=moments)

    @torch.no_grad()
    def _apply(self, rate: Rate) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            state = self._states[name]
            state.step += 1
            rule = self._rules[name]
            rule.take(parameter.data, parameter.grad, state.tensors, state.step, rate)

    def moments(self) -> dict[str, Tensor]:
        """Return the moments by name, not copied."""
        return {
            f"{kind}.{name}": tensor
            for name in self._parameters
            if name in self._states
            for kind, tensor in self._states[name].tensors.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the state as `<kind>.<parameter>` tensors; empty before the first step."""
        found = {name: moment.cpu() for name, moment in self.moments().items()}
        for name, state in self._states.items():
            found[f"step.{name}"] = torch.tensor(float(state.step))
        if found and self.name != "adamw":
            found[MARK] = torch.tensor(list(self.name.encode()), dtype=torch.uint8)
        return found

    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Set the state, and use the optimizer that made it. What is missing in it is zero, as for
        a parameter that never had a gradient; an empty state starts afresh. BackendError when a
        name or shape does not fit.
        """
        stored = dict(tensors)
        mark = stored.pop(MARK, None)
        rules, name = self._rules, self.name
        if stored:
            name = "adamw" if mark is None else bytes(mark.tolist()).decode()
            rules = self._rules_of(name)
        self._check_fits(stored, rules, source)
        self._states.clear()
        self._rules, self.name = rules, name
        for parameter in self._parameters:
            zero = self._zero(parameter)
            if any(f"{kind}.{parameter}" in stored for kind in (*zero.tensors, "step")):
                self._states[parameter] = _loaded(stored, parameter, zero)

    def _check_fits(
        self, stored: Mapping[str, Tensor], rules: Mapping[str, Rule], source: Path
    ) -> None:
        shapes: dict[str, torch.Size] = {}
        for name, rule in rules.items():
            zero = rule.zero(self._parameters[name].detach())
            shapes |= {f"{kind}.{name}": tensor.shape for kind, tensor in zero.items()}
            shapes[f"step.{name}"] = torch.Size()
        misfits = [name for name, t in stored.items() if shapes.get(name) != t.shape]
        if misfits:
            raise BackendError(
                f"the optimizer state in {source} is not that of this model: {len(misfits)} "
                f"tensors differ, {min(misfits)!r} first",
                "Use the options of that run, or another model name.",
            )


def _loaded(stored: Mapping[str, Tensor], name: str, state: _State) -> _State:
    for kind, tensor in state.tensors.items():
        if (found := stored.get(f"{kind}.{name}")) is not None:
            tensor.copy_(found)
    state.step = int(stored.get(f"step.{name}", 0))
    return state
