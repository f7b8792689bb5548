"""The critic of PPO: a value head on the policy's last hidden state, and its own optimizer.

The head does not move the policy: hidden states are data to it. It has few parameters, so it stays
on the CPU, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from art_core.base.errors import BackendError
from art_core.rl.advantages import balance_factors, generalized_advantages
from art_core.rl.config import TrainConfig
from art_core.rl.sequences import TokenSequence
from art_local.training.optimizer import Optimizer
from art_local.training.windows import ValueTargets, Window, of_loss_tokens, token_advantages

LEARNING_RATE, CLIP, LAMBDA, GAMMA = 5e-3, 0.2, 0.95, 1.0
"""Unless asked otherwise: `value_learning_rate`, `value_clip`, `gae_lambda`, `gae_gamma`."""
MAX_GRAD_NORM = 1.0
STEPS = 10
"""Steps of the head for each optimizer step of the policy: hidden states are computed only once."""
NAMES = ("weight", "bias")
FILE = "value_head.safetensors"


class Critic:
    """V(state) = w . h / |h| + b, where h [H] is the policy's last hidden state. It begins at 0."""

    def __init__(self, hidden_size: int) -> None:
        self.weight_H = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))
        self._optimizer = Optimizer(dict(zip(NAMES, (self.weight_H, self.bias), strict=True)))

    def values(self, hidden_NH: Tensor) -> Tensor:
        """Return the values [N] of states; their hidden states are scaled to length 1."""
        return nn.functional.normalize(hidden_NH, dim=1) @ self.weight_H + self.bias

    def targets(
        self, windows: Sequence[Window], hidden: Sequence[Tensor], config: TrainConfig
    ) -> tuple[list[Window], dict[str, float]]:
        """Return the windows with generalized advantages and the targets of their values, and how
        much of the returns' variance the values explain. `hidden` [N, H] are the states of each
        window's loss tokens. The advantages of the sequences, a teacher's, are added as they are:
        values and returns are those of rewards.
        """
        sequences = [s for window in windows for s in window.sequences]
        with torch.no_grad():
            old_N = self.values(torch.cat(list(hidden)))
        advantages_N = _advantages(sequences, old_N, config)
        returns_N = advantages_N + old_N
        up, down = balance_factors(config.advantage_balance)
        balanced_N = advantages_N * torch.where(advantages_N > 0, up, down)
        balanced_N += token_advantages(sequences)
        filled: list[Window] = []
        start = 0
        for window, hidden_NH in zip(windows, hidden, strict=True):
            tokens = slice(start, start + len(hidden_NH))
            values = ValueTargets(
                hidden_NH=hidden_NH, old_N=old_N[tokens], returns_N=returns_N[tokens]
            )
            filled.append(attrs.evolve(window, advantages_N=balanced_N[tokens], values=values))
            start = tokens.stop
        return filled, {"loss/value_explained_variance": explained_variance(old_N, returns_N)}

    def step(self, targets: ValueTargets, config: TrainConfig) -> float:
        """Take optimizer steps on the clipped value loss; return the loss before them. Raises
        BackendError if it is not finite.
        """
        losses: list[float] = []
        for _ in range(STEPS):
            values_N, clip = self.values(targets.hidden_NH), config.value_clip or CLIP
            loss = value_loss(values_N, targets.old_N, targets.returns_N, clip)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step(config.value_learning_rate or LEARNING_RATE, MAX_GRAD_NORM)
            losses.append(float(loss.detach()))
        return losses[0]

    def save(self, directory: Path) -> None:
        """Write the state into a checkpoint, if there was a step."""
        if self._optimizer.state():
            save_file(self.state(), directory / FILE)

    def read(self, directory: Path) -> None:
        """Set the state of a checkpoint; that of one without a critic is new."""
        if (directory / FILE).exists():
            self.load(load_file(directory / FILE), directory)

    def state(self) -> dict[str, Tensor]:
        """Return copies of the weights, and of the optimizer's state, by name."""
        tensors = {"weight": self.weight_H.detach(), "bias": self.bias.detach()}
        tensors |= self._optimizer.state()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Set the weights and the optimizer's state; BackendError if they do not fit."""
        for name, parameter in zip(NAMES, (self.weight_H, self.bias), strict=True):
            stored = tensors.get(name)
            if stored is None or stored.shape != parameter.shape:
                raise BackendError(
                    f"the value head in {source} is not that of this model",
                    "Use the base model of that run, or another model name.",
                )
            parameter.copy_(stored)
        rest = {name: tensor for name, tensor in tensors.items() if name not in NAMES}
        self._optimizer.load(rest, source)


def value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """Return the clipped value loss, mean over tokens: half of the larger of (V - R)^2 and
    (V_clipped - R)^2, where V_clipped is at most `clip` away from the value before the step (as in
    the code of Schulman et al., arXiv 1707.06347).
    """
    clipped_N = old_N + (values_N - old_N).clamp(-clip, clip)
    errors_N = torch.maximum((values_N - returns_N) ** 2, (clipped_N - returns_N) ** 2)
    return 0.5 * errors_N.mean()


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """Return 1 - Var(R - V) / Var(R); 0 where all returns are equal."""
    spread = float(returns_N.double().var(unbiased=False))
    rest = float((returns_N - values_N).double().var(unbiased=False))
    return 1 - rest / spread if spread > 0 else 0.0


def _advantages(
    sequences: Sequence[TokenSequence], values_N: Tensor, config: TrainConfig
) -> Tensor:
    """Return the generalized advantages [N] of all loss tokens, conversation by conversation."""
    gamma = GAMMA if config.gae_gamma is None else config.gae_gamma
    lam = LAMBDA if config.gae_lambda is None else config.gae_lambda
    rewards_N = of_loss_tokens(sequences, [s.rewards for s in sequences]).tolist()
    values = values_N.tolist()
    found: list[float] = []
    for start, end in _conversations(sequences):
        found += generalized_advantages(
            rewards_N[start:end], values[start:end], gamma=gamma, lam=lam
        )
    return torch.tensor(found, dtype=torch.float32)


def _conversations(sequences: Sequence[TokenSequence]) -> list[tuple[int, int]]:
    """Return where the loss tokens of each conversation begin and end."""
    starts: list[int] = []
    end = 0
    for sequence in sequences:
        if not (starts and sequence.continues):
            starts.append(end)
        end += sum(sequence.trainable[1:])
    return list(zip(starts, [*starts[1:], end], strict=True))
