"""Sample tokens from logits: biases, temperature, min_p and top_p per row, log-probabilities of the
raw logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    masks: Mapping[int, bytes] | None = None,
) -> list[Drawn]:
    """Draw one token per row: (id, log-probability, alternatives).

    The log-probability is the fp32 log-softmax of the raw logits, at temperature 1 and before
    biases, min_p and top_p. `masks` are the tokens that grammars allow, a bit for each, by row:
    the others have no probability.

    A row is drawn by inverting its cumulative distribution at its number of `uniforms` [N] in
    [0, 1). A row with a seed has exponential numbers [V] in `races`: the token with the largest
    probability / number is drawn. The last bits of logits depend on the other rows of the batch; in
    the cumulative distribution of a whole vocabulary these differences add up and change draws, in
    a race they matter only for nearly equal tokens. Raises EngineError if logits are not finite.
    """
    logits_NV = logits_NV.float()
    if masks:
        logits_NV = masked(logits_NV, masks)
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
    device = logits_NV.device
    biased = [row for row, sampling in enumerate(samplings) if sampling.logit_bias]
    if biased:
        logits_NV = _biased(logits_NV, biased, samplings)
    if not any(temperatures):
        return logits_NV.argmax(dim=-1)
    if biased or any(t != 1.0 for t in temperatures):
        scale_N = torch.tensor([t or 1.0 for t in temperatures], device=device)
        probs_NV = (logits_NV / scale_N[:, None]).softmax(dim=-1)
    for row, sampling in enumerate(samplings):
        if (sampling.top_p < 1.0 or sampling.min_p) and sampling.temperature:
            probs_NV[row] = _narrowed(probs_NV[row], sampling)
    ids_N = _inverted(probs_NV, uniforms)
    raced = [(row, race) for row, race in enumerate(races) if race is not None]
    if raced:
        rows_R = torch.tensor([row for row, _ in raced], device=device)
        race_RV = torch.stack([race for _, race in raced])
        ids_N[rows_R] = _raced(probs_NV[rows_R], race_RV)
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


def _raced(probs_RV: torch.Tensor, race_RV: torch.Tensor) -> torch.Tensor:
    """Return the tokens with the largest probability / number, none without probability."""
    ids_R1 = (probs_RV / race_RV).argmax(dim=-1, keepdim=True)
    if not bool((probs_RV.gather(1, ids_R1) > 0).all()):
        # among many numbers some are 0, and 0 / 0 is the largest
        ids_R1 = torch.where(probs_RV > 0, probs_RV / race_RV, 0.0).argmax(dim=-1, keepdim=True)
    return ids_R1[:, 0]


def masked(logits_NV: torch.Tensor, masks: Mapping[int, bytes]) -> torch.Tensor:
    """Return logits that are -inf in the rows of `masks` where these have no bit."""
    rows_M = torch.tensor([*masks], device=logits_NV.device)
    bits_M8 = torch.frombuffer(bytearray(b"".join(masks.values())), dtype=torch.uint8)
    allowed_MV = unpacked(bits_M8.reshape(len(masks), -1).to(logits_NV.device), logits_NV.shape[1])
    rows_MV = logits_NV[rows_M].masked_fill_(~allowed_MV, -torch.inf)
    return logits_NV.index_copy(0, rows_M, rows_MV)


def unpacked(bits_M8: torch.Tensor, size: int) -> torch.Tensor:
    """Return masks [M, V] of packed ones, whose first token is the lowest bit of the first byte."""
    places_8 = torch.arange(8, device=bits_M8.device, dtype=torch.uint8)
    return (bits_M8[:, :, None] >> places_8 & 1).flatten(1)[:, :size].bool()


def _biased(
    logits_NV: torch.Tensor, rows: Sequence[int], samplings: Sequence[Sampling]
) -> torch.Tensor:
    logits_NV = logits_NV.clone()
    for row in rows:
        ids, biases = zip(*samplings[row].logit_bias, strict=True)
        logits_NV[row, list(ids)] += torch.tensor(biases, device=logits_NV.device)
    return logits_NV


def _narrowed(probs_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Keep the tokens that min_p (Nguyen et al., 2407.01082) and then top_p leave."""
    if sampling.min_p:
        probs_V = torch.where(probs_V < sampling.min_p * probs_V.max(), 0.0, probs_V)
    if sampling.top_p < 1.0:
        probs_V = _nucleus(probs_V / probs_V.sum(), sampling.top_p)
    return probs_V


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
