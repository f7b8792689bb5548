"""How one parameter moves by its gradient: AdamW, AdamW with moments of 8 bits, and Muon."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Protocol

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import ConfigError

BETAS, EPSILON = (0.9, 0.99), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTUM = "momentum_buffer"
BLOCK = 256
MIN_8BIT = 4096
"""Values of the smallest parameter whose moments have 8 bits, as in bitsandbytes' optimizers."""


@attrs.frozen
class Rate:
    """The learning rate and the weight decay of a step."""

    learning_rate: float
    weight_decay: float = 0.0

    @property
    def kept(self) -> float:
        """The share of a weight that the decay leaves (Loshchilov and Hutter, 1711.05101)."""
        return 1 - self.learning_rate * self.weight_decay


State = Mapping[str, Tensor]


class Rule(Protocol):
    """Moves parameters. `state` are its tensors for one parameter; `step` counts from 1."""

    def zero(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state before the first step."""

    def propose(
        self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight and the moments after a step; change nothing."""

    def take(self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate) -> None:
        """Take the step in place; the gradient's memory may be used for intermediate results."""


class AdamW:
    """AdamW (0.9, 0.99): Kingma and Ba, 1412.6980, algorithm 1, with decoupled weight decay."""

    def zero(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return moments of zero."""
        return {kind: torch.zeros_like(parameter) for kind in MOMENTS}

    def propose(
        self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight and the moments after a step; change nothing."""
        size, root = _step_size(rate.learning_rate, step)
        average = torch.lerp(state["exp_avg"], gradient, 1 - BETAS[0])
        squares = state["exp_avg_sq"].mul(BETAS[1])
        squares.addcmul_(gradient, gradient, value=1 - BETAS[1])
        divisor = squares.sqrt().div_(root).add_(EPSILON)
        decayed = weight * rate.kept if rate.weight_decay else weight
        moved = torch.addcdiv(decayed, average, divisor, value=-size)
        return moved, {"exp_avg": average, "exp_avg_sq": squares}

    def take(self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate) -> None:
        """Take the step in place; nothing is allocated."""
        size, root = _step_size(rate.learning_rate, step)
        average, squares = state["exp_avg"], state["exp_avg_sq"]
        average.lerp_(gradient, 1 - BETAS[0])
        squares.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        torch.sqrt(squares, out=gradient).div_(root).add_(EPSILON)
        if rate.weight_decay:
            weight.mul_(rate.kept)
        weight.addcdiv_(average, gradient, value=-size)


class AdamW8bit:
    """AdamW whose moments are stored in 8 bits: blocks of 256 values, each with its largest one
    (Dettmers et al., 2110.02861). The step itself is computed in fp32.
    """

    def __init__(self) -> None:
        self._adamw = AdamW()
        self._functional = _bitsandbytes()
        create = self._functional.create_dynamic_map
        self._codes = {"exp_avg": create(signed=True), "exp_avg_sq": create(signed=False)}

    def zero(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return moments of zero."""
        return self._stored({kind: torch.zeros_like(parameter) for kind in MOMENTS})

    def propose(
        self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight and the moments, in fp32, after a step; change nothing."""
        return self._adamw.propose(weight, gradient, self._moments(state), step, rate)

    def take(self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate) -> None:
        """Take the step in place. The moments of this parameter exist in fp32 for a moment."""
        moments = self._moments(state)
        self._adamw.take(weight, gradient, moments, step, rate)
        for name, tensor in self._stored(moments).items():
            state[name].copy_(tensor)

    def _moments(self, state: State) -> dict[str, Tensor]:
        return {
            kind: self._functional.dequantize_blockwise(
                state[kind],
                absmax=state[f"{kind}_absmax"],
                code=self._code(kind, state[kind]),
                blocksize=BLOCK,
            )
            for kind in MOMENTS
        }

    def _stored(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for kind, moment in moments.items():
            codes, how = self._functional.quantize_blockwise(
                moment.float().contiguous(), code=self._code(kind, moment), blocksize=BLOCK
            )
            found[kind], found[f"{kind}_absmax"] = codes, how.absmax
        return found

    def _code(self, kind: str, beside: Tensor) -> Tensor:
        code: Tensor = self._codes[kind].to(beside.device)
        self._codes[kind] = code
        return code


class Muon:
    """Muon for matrices (Jordan et al., 2024), with momentum 0.95. The size of its steps is that of
    AdamW's, so the same learning rates fit (Moonlight, 2502.16982, section 2.2).
    """

    def __init__(self) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer='muon' needs torch 2.9 or later, and this is {torch.__version__}",
                "Update torch, or use another optimizer.",
            )

    def zero(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a momentum of zero."""
        return {MOMENTUM: torch.zeros_like(parameter)}

    def propose(
        self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight and the momentum after a step; change nothing."""
        moved, momentum = weight.clone(), state[MOMENTUM].clone()
        self.take(moved, gradient, {MOMENTUM: momentum}, step, rate)
        return moved, {MOMENTUM: momentum}

    def take(self, weight: Tensor, gradient: Tensor, state: State, step: int, rate: Rate) -> None:
        """Take the step in place; matrices of this one's size exist for a moment."""
        del step
        parameter = nn.Parameter(weight)
        parameter.grad = gradient
        optimizer = torch.optim.Muon(
            [parameter],
            lr=rate.learning_rate,
            weight_decay=rate.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizer.state[parameter][MOMENTUM] = state[MOMENTUM]
        optimizer.step()


def _step_size(learning_rate: float, step: int) -> tuple[float, float]:
    """Return the learning rate and the root of the second moment's divisor, both corrected for
    moments that began at zero.
    """
    return learning_rate / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step) ** 0.5


def _bitsandbytes() -> ModuleType:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            f"optimizer='adamw_8bit' needs bitsandbytes, which cannot be imported: {error}",
            "pip install 'art-local[8bit]'",
        ) from error
    found: ModuleType = functional
    return found
