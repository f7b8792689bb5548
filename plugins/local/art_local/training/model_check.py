"""Checks of a model's own forward pass: log-probs must depend on the tokens before only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from art_core.base.errors import ConfigError
from art_local.training.logprobs import OutputHead, output_heads

LENGTH = 24
ROUNDING = {torch.float32: 1e-4}
ROUNDING_16_BIT = 0.02
"""Nats by which log-probs of equal beginnings may differ on average, in passes of one shape."""
REMEDY = "Train another model."


def probe_ids(model: Any) -> Tensor:
    """Return the token ids [1, S] of a text that checks are made on."""
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    return torch.arange(1, 1 + LENGTH, device=device)[None] % vocabulary


@torch.no_grad()
def checked_logits(
    model: Any, dtype: torch.dtype, precision: AbstractContextManager[Any] | None = None
) -> Tensor:
    """Return the logits [S - 1, V] of the probe's tokens but the last by the model's own forward
    pass, which computes in `dtype`.

    Raises ConfigError for a model that draws at random, changes its weights, or sees later tokens.
    """
    name, ids_1S = type(model).__name__, probe_ids(model)
    versions = _versions(model)
    with precision or nullcontext():
        logits_RV = _logits(model, ids_1S)
        found, again = _logprobs(logits_RV, ids_1S), _logprobs(_logits(model, ids_1S), ids_1S)
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
        half = LENGTH // 2
        ids_1S[0, half:] = (ids_1S[0, half:] * 5 + 3) % model.config.get_text_config().vocab_size
        changed = _logprobs(_logits(model, ids_1S), ids_1S)
    rounding = ROUNDING.get(dtype, ROUNDING_16_BIT)
    if not _agree(changed[: half - 1], found[: half - 1], rounding):
        raise ConfigError(
            f"{name} is no causal language model: the log-probs of a token depend on tokens after "
            "it",
            REMEDY,
        )
    return logits_RV


def matching_head(
    model: Any, hidden_RH: Tensor, theirs_RV: Tensor, *, tolerance: float
) -> OutputHead:
    """Return the output head that makes a model's own logits of its hidden states at the probe, so
    that an unusual head, or attention that is not the model's own, is never trained wrong.

    A scale that the config does not state by a known name is taken from the logits.
    """
    ids_1S = probe_ids(model)
    *stated, plain = output_heads(model)
    plain_RV = plain.logits(hidden_RH)
    scale = float((plain_RV * theirs_RV).sum() / plain_RV.square().sum())
    apart = []
    for head in (*stated, plain, attrs.evolve(plain, scale=scale)):
        ours_R = _logprobs(head.logits(hidden_RH), ids_1S)
        theirs_R = _logprobs(theirs_RV, ids_1S)
        # improbable tokens, as the probe's are, have log-probs with larger rounding errors
        if _agree(ours_R, theirs_R, tolerance * (1 + float(theirs_R.abs().mean()))):
            return head
        apart.append(float((ours_R - theirs_R).abs().max()))
    raise ConfigError(
        f"the output head of {type(model).__name__} is more than a linear layer with bias, scale "
        f"and softcap: its log-probs differ by {min(apart):.3g}",
        REMEDY,
    )


def _agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether log-probs differ by rounding: by `tolerance` on average. In 16 bit, experts
    may be chosen otherwise for a token, which then differs by more.
    """
    return bool((one - other).abs().mean() <= tolerance)


def _logits(model: Any, ids_1S: Tensor) -> Tensor:
    logits_RV: Tensor = model(input_ids=ids_1S, use_cache=False).logits[0, :-1].float()
    return logits_RV


def _logprobs(logits_RV: Tensor, ids_1S: Tensor) -> Tensor:
    return logits_RV.log_softmax(1).gather(1, ids_1S[0, 1:, None])[:, 0]


def _versions(model: nn.Module) -> dict[str, int]:
    """Return how often each parameter was changed in place."""
    return {name: parameter._version for name, parameter in model.named_parameters()}  # noqa: SLF001
