"""Sample tokens from logits: temperature and top_p per row, log-probabilities of the raw logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from art_core.base.errors import EngineError
from art_core.endpoint.engine import Sampling

BLOCK = 512
"""Tokens of a block in which a draw is looked for."""

Drawn = tuple[int, float, tuple[tuple[int, float], ...]]


def draw(
    logits_NV: torch.Tensor,
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    races: Sequence[torch.Tensor | None],
) -> list[Drawn]:
    """Draw one token per row: (id, log-probability, alternatives).

    The log-probability is the fp32 log-softmax of the raw logits, at temperature 1 and before
    top_p. A row is drawn by inverting its cumulative distribution at its number of `uniforms` [N]
    in [0, 1). A row with a seed has exponential numbers [V] in `races`: the token with the largest
    probability / number is drawn. The last bits of logits depend on the other rows of the batch; in
    the cumulative distribution of a whole vocabulary these differences add up and change draws, in
    a race they matter only for nearly equal tokens. Raises EngineError if logits are not finite.
    """
    logits_NV = logits_NV.float()
    probs_NV = logits_NV.softmax(dim=-1)
    # the log of the sum of exponentials, from the largest of them
    normaliser_N = logits_NV.amax(dim=-1) - probs_NV.amax(dim=-1).log()
    if not bool(torch.isfinite(normaliser_N).all()):
        raise EngineError(
            "the model's logits are not finite", "Its weights contain NaN or infinite values"
        )
    ids_N = _choose(logits_NV, probs_NV, samplings, uniforms, races)
    logprobs_N = logits_NV.gather(1, ids_N[:, None])[:, 0] - normaliser_N
    tops = _alternatives(logits_NV, normaliser_N, [s.top_logprobs for s in samplings])
    return list(zip(ids_N.tolist(), logprobs_N.tolist(), tops, strict=True))


def _choose(
    logits_NV: torch.Tensor,
    probs_NV: torch.Tensor,
    samplings: Sequence[Sampling],
    uniforms: Sequence[float],
    races: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    temperatures = [s.temperature for s in samplings]
    if not any(temperatures):
        return logits_NV.argmax(dim=-1)
    device = logits_NV.device
    if any(t != 1.0 for t in temperatures):
        scale_N = torch.tensor([t or 1.0 for t in temperatures], device=device)
        probs_NV = (logits_NV / scale_N[:, None]).softmax(dim=-1)
    for row, sampling in enumerate(samplings):
        if sampling.top_p < 1.0 and sampling.temperature:
            probs_NV[row] = _nucleus(probs_NV[row], sampling.top_p)
    ids_N = _inverted(probs_NV, uniforms)
    raced = [(row, race) for row, race in enumerate(races) if race is not None]
    if raced:
        rows_R = torch.tensor([row for row, _ in raced], device=device)
        race_RV = torch.stack([race for _, race in raced])
        ids_N[rows_R] = (probs_NV[rows_R] / race_RV).argmax(dim=-1)
    greedy_N = torch.tensor([t == 0.0 for t in temperatures], device=device)
    if bool(greedy_N.any()):
        ids_N = torch.where(greedy_N, probs_NV.argmax(dim=-1), ids_N)
    return ids_N


def _inverted(probs_NV: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Invert the cumulative distribution of each row at its number: first over blocks of tokens,
    then within a block.
    """
    if excess := probs_NV.shape[1] % BLOCK:
        probs_NV = functional.pad(probs_NV, (0, BLOCK - excess))
    blocks_NBK = probs_NV.unflatten(1, (-1, BLOCK))
    sums_NB = blocks_NBK.sum(dim=-1)
    before_NB = sums_NB.cumsum(dim=-1)
    uniform_N = torch.tensor(uniforms, device=probs_NV.device, dtype=torch.float64)
    target_N1 = (uniform_N * before_NB[:, -1]).float()[:, None]
    # rounding can make the target equal to a total: a token without probability is never drawn
    block_N1 = torch.searchsorted(before_NB, target_N1, right=True)
    block_N1 = torch.minimum(block_N1, _last_positive(sums_NB))
    rest_N1 = (target_N1 - (before_NB - sums_NB).gather(1, block_N1)).clamp_(min=0.0)
    rows_N = torch.arange(len(probs_NV), device=probs_NV.device)
    inside_NK = blocks_NBK[rows_N, block_N1[:, 0]]
    place_N1 = torch.searchsorted(inside_NK.cumsum(dim=-1), rest_N1, right=True)
    place_N1 = torch.minimum(place_N1, _last_positive(inside_NK))
    return (block_N1 * BLOCK + place_N1)[:, 0]


def _last_positive(values_NK: torch.Tensor) -> torch.Tensor:
    """Return the place [N, 1] of each row's last positive value."""
    places_K = torch.arange(values_NK.shape[1], device=values_NK.device)
    return torch.where(values_NK > 0, places_K, 0).amax(dim=-1, keepdim=True)


def _nucleus(probs_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p (Holtzman et al.,
    1904.09751).
    """
    sorted_V, order_V = probs_V.sort(descending=True)
    before_V = sorted_V.cumsum(dim=0) - sorted_V
    return torch.zeros_like(probs_V).scatter_(
        0, order_V, torch.where(before_V < top_p, sorted_V, 0.0)
    )


def _alternatives(
    logits_NV: torch.Tensor, normaliser_N: torch.Tensor, counts: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    largest = max(counts, default=0)
    if not largest:
        return [()] * len(counts)
    values_NK, ids_NK = logits_NV.topk(min(largest, logits_NV.shape[1]), dim=-1)
    logprobs_NK = values_NK - normaliser_N[:, None]
    rows = zip(ids_NK.tolist(), logprobs_NK.tolist(), counts, strict=True)
    return [tuple(zip(ids[:k], logprobs[:k], strict=True)) for ids, logprobs, k in rows]
