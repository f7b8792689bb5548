"""Checks of a model's own forward pass: log-probs must depend on the tokens before only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from art_core.base.errors import ConfigError

LENGTH = 24
REMEDY = "Train another model."


def probe_ids(model: Any) -> Tensor:
    """Return the token ids [1, S] of a text that checks are made on."""
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    return torch.arange(1, 1 + LENGTH, device=device)[None] % vocabulary


@torch.no_grad()
def checked_logprobs(
    model: Any, precision: AbstractContextManager[Any] | None = None, *, tolerance: float
) -> Tensor:
    """Return the log-probs [S - 1] of the probe's tokens by the model's own forward pass.

    Raises ConfigError for a model that draws at random, changes its weights, or sees later tokens.
    """
    name, ids_1S = type(model).__name__, probe_ids(model)
    versions = _versions(model)
    with precision or nullcontext():
        found, again = _logprobs(model, ids_1S), _logprobs(model, ids_1S)
        if versions != _versions(model):
            raise ConfigError(
                f"{name} changes its own weights in a forward pass, so the weights that are served "
                "would not be those that were trained",
                REMEDY,
            )
        if not torch.allclose(found, again, atol=1e-2, rtol=1e-2):
            raise ConfigError(
                f"the log-probs of {name} are not a function of its tokens: "
                f"computed twice they differ by {float((found - again).abs().max()):.3g}",
                "Set dropout and noise to 0 in the base model's config.json, or train another "
                "model.",
            )
        ids_1S[0, -1] += 1 if ids_1S[0, -1] == 0 else -1
        changed = _logprobs(model, ids_1S)[:-1]
    if not torch.allclose(changed, found[:-1], atol=tolerance, rtol=tolerance):
        raise ConfigError(
            f"{name} is no causal language model: the log-probs of a token depend on tokens after "
            "it",
            REMEDY,
        )
    return found


def _logprobs(model: Any, ids_1S: Tensor) -> Tensor:
    logits = model(input_ids=ids_1S, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(1).gather(1, ids_1S[0, 1:, None])[:, 0]


def _versions(model: nn.Module) -> dict[str, int]:
    """Return how often each parameter was changed in place."""
    return {name: parameter._version for name, parameter in model.named_parameters()}  # noqa: SLF001
