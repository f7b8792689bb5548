"""Log-probs and entropies of chosen tokens, without all logits in memory.

Logits [B, S, V] of a long context do not fit: 2,048 tokens with a vocabulary of 152k are 1.2 GB in
fp32, in several copies. Only rows whose next token has a loss are computed, `chunk_size` at a time.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from art_local.models.products import linear, product
from art_local.training.allowed import forbid_
from art_local.training.batches import Allowed

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@attrs.frozen(kw_only=True, eq=False)
class OutputHead:
    """The output head: logits are softcap(scale * (h @ weight.T + bias)).

    `weight_VH` and `bias_V` are the model's own parameters; `softcap` is Gemma's cap * tanh(x /
    cap).
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """Return logits [R, V] in fp32; the product is computed in the hidden states' dtype."""
        weight_VH = self.weight_VH.to(hidden_RH.dtype)
        bias_V = None if self.bias_V is None else self.bias_V.to(hidden_RH.dtype)
        logits_RV = linear(hidden_RH, weight_VH, bias_V).float()
        if self.scale != 1.0:
            logits_RV.mul_(self.scale)
        if self.softcap is not None:
            logits_RV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_RV

    def slope_(self, dlogits_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Propagate a gradient on logits back to h @ weight.T + bias, in place."""
        if self.softcap is not None:
            dlogits_RV.mul_(1 - (logits_RV / self.softcap).square_())
        return dlogits_RV if self.scale == 1.0 else dlogits_RV.mul_(self.scale)


def output_heads(model: Any) -> list[OutputHead]:
    """Return the output heads that a transformers model may have: by its config, and without
    scale and cap, which some multimodal models leave out of their text model's config.
    """
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    divided = getattr(config, "logits_scaling", None)
    plain = OutputHead(weight_VH=layer.weight, bias_V=getattr(layer, "bias", None))
    stated = attrs.evolve(
        plain,
        scale=1 / divided if divided else getattr(config, "logit_scale", None) or 1.0,
        softcap=next((cap for key in SOFTCAPS if (cap := getattr(config, key, None))), None),
    )
    return [stated, plain]


def token_logprobs(
    hidden_RH: Tensor,
    head: OutputHead,
    targets_R: Tensor,
    *,
    chunk_size: int = 512,
    entropy_gradient: bool = False,
    allowed: Allowed | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log p(target) [R] and the entropy [R] of each row's distribution, both fp32, in nats.
    The distribution is over the `allowed` tokens, by default all.

    Gradients flow through the log-probs into the hidden states and, if they are trained, into the
    head's weight and bias; through the entropy only with `entropy_gradient`. At most
    [chunk_size, V] logits exist at a time, in the forward and the backward pass.
    """
    logprobs_R, entropy_R = _TokenLogprobs.apply(
        hidden_RH,
        head.weight_VH,
        head.bias_V,
        targets_R,
        head,
        chunk_size,
        entropy_gradient,
        allowed,
    )
    return logprobs_R, entropy_R


class _TokenLogprobs(torch.autograd.Function):
    """d log p(y) / d logits = onehot(y) - p, and d H / d logits = -p * (log p + H).

    With a frozen head the gradient on a hidden state is g * (onehot(y) - p) @ W, where the upstream
    g is one number per row: the forward pass computes the product, the backward pass multiplies it
    by g, and no logits are computed twice. The same holds for the entropy. A trained head needs g
    inside the sum over rows, so it computes the logits again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RH: Tensor,
        weight_VH: Tensor,
        _bias_V: Tensor | None,
        targets_R: Tensor,
        head: OutputHead,
        chunk_size: int,
        entropy_gradient: bool,  # noqa: FBT001
        allowed: Allowed | None,
    ) -> tuple[Tensor, Tensor]:
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        at_once = ctx.needs_input_grad[0] and not trains_head
        weight = weight_VH.to(hidden_RH.dtype)
        slopes_RH = torch.empty_like(hidden_RH) if at_once else None
        entropy_slopes_RH = torch.empty_like(hidden_RH) if at_once and entropy_gradient else None
        logprobs_R = hidden_RH.new_empty(len(hidden_RH), dtype=torch.float32)
        entropy_R = torch.empty_like(logprobs_R)
        for start in range(0, len(hidden_RH), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = head.logits(hidden_RH[rows])
            forbid_(logits, allowed, rows)
            chosen = logits.gather(1, targets_R[rows, None])[:, 0]
            p = torch.softmax(logits, 1)
            # logsumexp, from its largest term: torch's own walks the logits five times
            lse = logits.amax(1) - p.amax(1).log()
            logprobs_R[rows] = chosen - lse
            entropy_R[rows] = lse - torch.einsum("rv,rv->r", p, logits)
            if entropy_slopes_RH is not None:
                dlogits = head.slope_(_entropy_slope(p, logits, lse, entropy_R[rows]), logits)
                entropy_slopes_RH[rows] = product(dlogits.to(weight.dtype), weight.t())
            if slopes_RH is not None:
                dlogits = head.slope_(_minus_from_onehot_(p, targets_R[rows]), logits)
                slopes_RH[rows] = product(dlogits.to(weight.dtype), weight.t())
        ctx.head, ctx.chunk_size, ctx.at_once = head, chunk_size, at_once
        saved = (slopes_RH, entropy_slopes_RH) if at_once else (hidden_RH, targets_R)
        ctx.save_for_backward(*saved)
        ctx.entropy_gradient, ctx.allowed = entropy_gradient, allowed
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_R)
        return logprobs_R, entropy_R

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor, entropy_grad_R: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_entropy_R = entropy_grad_R if ctx.entropy_gradient else None
        if ctx.at_once:
            slopes_RH, entropy_slopes_RH = ctx.saved_tensors
            dhidden = grad_R[:, None] * slopes_RH
            if of_entropy_R is not None:
                dhidden += of_entropy_R[:, None] * entropy_slopes_RH
            return dhidden.to(slopes_RH.dtype), *(None,) * 7
        hidden_RH, targets_R = ctx.saved_tensors
        found = _recompute(ctx, hidden_RH, targets_R, grad_R, of_entropy_R)
        return *found, *(None,) * 5


def _entropy_slope(p_RV: Tensor, logits_RV: Tensor, lse_R: Tensor, entropy_R: Tensor) -> Tensor:
    """Return -p * (log p + H), the entropy's gradient on the logits [R, V]."""
    slope_RV = (lse_R - entropy_R)[:, None] - logits_RV
    return slope_RV.mul_(p_RV)


def _minus_from_onehot_(p_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Turn p into onehot(target) - p, in place."""
    p_RV.neg_()
    p_RV[torch.arange(len(p_RV), device=p_RV.device), targets_R] += 1
    return p_RV


def _dlogits(
    logits: Tensor, targets_R: Tensor, grad_R: Tensor, entropy_grad_R: Tensor | None
) -> Tensor:
    """Return the gradient on softcapped logits [R, V] of log-probs and, if given, entropies."""
    p = torch.softmax(logits, 1)
    of_entropy = None
    if entropy_grad_R is not None:
        lse = logits.logsumexp(1)
        entropy_R = lse - torch.einsum("rv,rv->r", p, logits)
        of_entropy = _entropy_slope(p, logits, lse, entropy_R).mul_(entropy_grad_R[:, None])
    of_logprob = _minus_from_onehot_(p, targets_R).mul_(grad_R[:, None])
    return of_logprob if of_entropy is None else of_logprob.add_(of_entropy)


def _recompute(
    ctx: Any,
    hidden_RH: Tensor,
    targets_R: Tensor,
    grad_R: Tensor,
    entropy_grad_R: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    head: OutputHead = ctx.head
    weight = head.weight_VH.to(hidden_RH.dtype)
    dhidden = torch.empty_like(hidden_RH) if ctx.needs_input_grad[0] else None
    dweight = (
        torch.zeros_like(head.weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
    )
    dbias = None
    if ctx.needs_input_grad[2] and head.bias_V is not None:
        dbias = torch.zeros_like(head.bias_V, dtype=torch.float32)
    for start in range(0, len(hidden_RH), ctx.chunk_size):
        rows = slice(start, start + ctx.chunk_size)
        logits = head.logits(hidden_RH[rows])
        forbid_(logits, ctx.allowed, rows)
        of_entropy = None if entropy_grad_R is None else entropy_grad_R[rows]
        dlogits = _dlogits(logits, targets_R[rows], grad_R[rows], of_entropy)
        dlogits = head.slope_(dlogits, logits).to(weight.dtype)
        if dhidden is not None:
            dhidden[rows] = product(dlogits, weight.t())
        if dweight is not None:
            dweight += product(dlogits.t(), hidden_RH[rows].t())
        if dbias is not None:
            dbias += dlogits.sum(0, dtype=torch.float32)
    return (
        dhidden,
        None if dweight is None else dweight.to(head.weight_VH.dtype),
        None if dbias is None or head.bias_V is None else dbias.to(head.bias_V.dtype),
    )
