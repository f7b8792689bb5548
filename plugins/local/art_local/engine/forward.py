"""Forward passes of a transformers causal language model over a slot cache: prompts, then one token
a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from art_local.engine.cache import SlotCache
from art_local.engine.layer_types import layer_types
from art_local.models.rotary import reset_dynamic_rotary, rotary_lengths


class Forward:
    """Runs a model; returns the logits [N, V] of each row's last token only.

    Raises ConfigError for a model whose state is more than keys and values of attention.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.config = module.config.get_text_config()
        self.layer_types = layer_types(self.config)
        self.rotary = rotary_lengths(self.config)
        reset_dynamic_rotary(module)
        self.window = (
            getattr(self.config, "sliding_window", None)
            if "sliding_attention" in self.layer_types
            else None
        )
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        if module.config._attn_implementation not in ("sdpa", "eager"):  # noqa: SLF001
            module.set_attn_implementation("sdpa")
        self._cache_name = cache_name(module.forward)
        self._last: torch.Tensor | None = None
        # logits_to_keep keeps the same positions for all rows; prompts end at different ones.
        module.get_output_embeddings().register_forward_pre_hook(self._keep_last)

    def new_cache(self) -> SlotCache:
        """Make an empty cache for this model."""
        return SlotCache(len(self.layer_types))

    @property
    def cache_bytes_per_token(self) -> int:
        """What one token holds in the cache."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(len(self.layer_types) * 2 * heads * size * self.dtype.itemsize)

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: SlotCache
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """
        lengths = [len(prompt) for prompt in prompts]
        # sequences get one token more; padding gives the pass the rotary factors of that length
        width = max(*lengths, self.rotary.shortest(max(lengths) + 1))
        ids_UP = torch.tensor(
            [[*prompt, *[0] * (width - len(prompt))] for prompt in prompts], device=self.device
        )
        source_R = torch.tensor(source, device=self.device)
        cache.begin_prefill(source_R, [lengths[i] for i in source])
        self._last = torch.tensor(lengths, device=self.device) - 1
        # Right padding under a causal mask is never seen, so no mask is needed.
        logits = self._logits(cache, input_ids=ids_UP)
        return logits[:, 0][source_R]

    def decode(self, token_ids: Sequence[int], cache: SlotCache) -> torch.Tensor:
        """Append one token to each row of the cache; logits [N, V]."""
        positions_N = torch.tensor(cache.lengths, device=self.device)
        cache.begin_decode(positions_N)
        self._last = None
        logits = self._logits(
            cache,
            input_ids=torch.tensor(token_ids, device=self.device)[:, None],
            position_ids=positions_N[:, None],
            attention_mask=self._masks(positions_N, cache.width),
        )
        return logits[:, 0]

    def _logits(self, cache: SlotCache, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self.module(
            **inputs, **{self._cache_name: cache}, use_cache=True
        ).logits
        return logits

    def _keep_last(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self._last is None:
            return args
        hidden_UPH = args[0]
        rows = torch.arange(len(self._last), device=hidden_UPH.device)
        return (hidden_UPH[rows, self._last][:, None], *args[1:])

    def _masks(self, positions_N: torch.Tensor, width: int) -> Any:
        places_W = torch.arange(width, device=self.device)
        full = places_W <= positions_N[:, None]
        if self.window is None:
            return self._additive(full)
        sliding = full & (places_W > positions_N[:, None] - self.window)
        if "full_attention" not in self.layer_types:
            return self._additive(sliding)
        return {
            "full_attention": self._additive(full),
            "sliding_attention": self._additive(sliding),
        }

    def _additive(self, seen_NW: torch.Tensor) -> torch.Tensor:
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(seen_NW.shape, dtype=self.dtype, device=self.device).masked_fill_(
            ~seen_NW, hidden
        )[:, None, None]


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the parameter by which a model's `forward` takes its cache: `cache` from transformers
    5.24 on, `past_key_values` before.
    """
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
