"""Forward passes of a transformers causal language model for sampling: prompts, then one token for
each row.

There are four kinds, and `make_forward` chooses. `FusedForward` (`fused.py`) computes the layers of
common decoders without their modules, on a CPU. `SlotForward` holds keys and values of attention
in slots, so that all rows share a pass. `CacheForward` (`cohorts.py`) leaves the state to the
model's own cache, and rows of equal prompts share a pass. `RecomputeForward` (`recompute.py`)
computes whole sequences for each token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import attrs
import torch
from torch import nn

from art_core.base.errors import EngineError
from art_local.engine.cache import SlotCache
from art_local.engine.layer_types import cache_parameter, layer_types
from art_local.engine.weights import Adapter
from art_local.images.reader import ImageReader
from art_local.models.load import reset_dynamic_rotary, rotary_lengths
from art_local.training.logprobs import OutputHead, output_heads, token_logprobs

SCORED_ROWS = 256


class RowCache(Protocol):
    """The state of a batch's rows; `width` is the longest row's number of tokens."""

    @property
    def width(self) -> int:
        """The longest sequence held."""

    @property
    def bytes_per_token(self) -> int:
        """The memory that a token of a row takes."""

    def reserve(self, rows: int, width: int) -> None:
        """Make room for so many rows of so many tokens."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""


@attrs.define(eq=False)
class LastTokens:
    """Keeps a pass's hidden states at `places` [N] only, before the output head; None keeps all.
    With `watch` all of them are in `seen` afterwards.

    It knows neither the model nor the forward pass: a cycle would hold the weights until Python
    collects garbage.
    """

    places: torch.Tensor | None = None
    watch: bool = False
    seen: torch.Tensor | None = None

    def __call__(self, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the inputs of the output head."""
        self.seen = args[0] if self.watch else None
        if self.places is None:
            return args
        hidden_NSH = args[0]
        rows_N = torch.arange(len(self.places), device=hidden_NSH.device)
        return (hidden_NSH[rows_N, self.places][:, None], *args[1:])


class Forward(ABC):
    """Runs a model; returns the logits [N, V] of each row's last token only.

    `cache_bytes_per_token` is the memory that one token of one row takes; a trial measures it.
    `is_rounded` is whether its weights are those of the module only nearly. One that `takes_images`
    reads prompts with the ids of `images`.
    """

    name: ClassVar[str]
    cache_bytes_per_token = 1
    is_rounded = False
    takes_images = False
    images: ImageReader | None = None

    def __init__(self, module: Any) -> None:
        self.module = module
        self.config = module.config.get_text_config()
        self.rotary = rotary_lengths(self.config)
        reset_dynamic_rotary(module)
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        if module.config._attn_implementation not in ("sdpa", "eager"):  # noqa: SLF001
            module.set_attn_implementation("sdpa")
        self.last = LastTokens()
        # logits_to_keep keeps the same positions for all rows; prompts end at different ones.
        head = module.get_output_embeddings()
        self._hook = head.register_forward_pre_hook(self.last)

    def use(self, adapter: Adapter) -> None:
        """Compute with an adapter's weights, which the module has now."""

    def release(self) -> None:
        """Refer to no adapter, so that an unloaded one's memory is freed."""

    def trim(self, tokens: int) -> None:
        """Keep at most so many tokens of ended sequences."""

    def prompt_tokens(self) -> tuple[int, int]:
        """Return how many prompt tokens there were, and how many of them were not computed."""
        return 0, 0

    def detach(self) -> None:
        """Leave the model to another forward pass."""
        self._hook.remove()

    def whole(self, ids: Sequence[int]) -> torch.Tensor:
        """Return the logits [S, V] of a whole text, without a cache."""
        self.last.places = None
        ids_1S = torch.tensor([list(ids)], device=self.device)
        logits: torch.Tensor = self.module(input_ids=ids_1S, use_cache=False).logits[0]
        return logits

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-prob of each token but the first of texts, whose rotary factors are equal.
        Only parts of the logits exist at a time. EngineError for an output head that is not known.
        """
        lengths = [len(ids) for ids in texts]
        ids_NS = self._padded(texts, max(lengths))
        self.last.watch = True
        try:
            last_NV = self.module(input_ids=ids_NS, use_cache=False).logits[:, 0].float()
        finally:
            self.last.watch, hidden_NSH, self.last.seen = False, self.last.seen, None
        assert hidden_NSH is not None
        head = self._matching_head(hidden_NSH[0, lengths[0] - 1], last_NV[0])
        rows = [hidden_NSH[n, : length - 1] for n, length in enumerate(lengths)]
        targets = [ids_NS[n, 1:length] for n, length in enumerate(lengths)]
        found, _ = token_logprobs(torch.cat(rows), head, torch.cat(targets), chunk_size=SCORED_ROWS)
        parts = found.split([length - 1 for length in lengths])
        return [part.tolist() for part in parts]

    def _matching_head(self, hidden_H: torch.Tensor, logits_V: torch.Tensor) -> OutputHead:
        """Return the output head that makes these logits."""
        near = 1e-3 if self.dtype == torch.float32 else 0.25
        for head in output_heads(self.module):
            ours_V = head.logits(hidden_H[None])[0]
            if (ours_V.log_softmax(0) - logits_V.log_softmax(0)).abs().mean() <= near:
                return head
        raise EngineError(
            f"the output head of {type(self.module).__name__} is more than a linear layer, so "
            "texts cannot be scored"
        )

    @abstractmethod
    def new_cache(self) -> RowCache:
        """Make an empty cache for this model."""

    @abstractmethod
    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: Any
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """

    @abstractmethod
    def decode(self, token_ids: Sequence[int], cache: Any) -> torch.Tensor:
        """Append one token to each row of the cache; logits [N, V]."""

    def inputs(self, ids_NW: torch.Tensor) -> dict[str, Any]:
        """Return what the module takes for token ids, with embeddings of images."""
        if self.images is None:
            return {"input_ids": ids_NW}
        return self.images.inputs(self.module.get_input_embeddings(), ids_NW)

    def padded(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return sequences [N, W] padded on the right; the passes return their last tokens'
        logits. Under causal attention padding on the right is never seen.
        """
        lengths = [len(sequence) for sequence in sequences]
        # sequences get one token more; padding gives the pass the rotary factors of that length
        return self._padded(sequences, max(*lengths, self.rotary.shortest(max(lengths) + 1)))

    def _padded(self, sequences: Sequence[Sequence[int]], width: int) -> torch.Tensor:
        lengths = [len(sequence) for sequence in sequences]
        self.last.places = torch.tensor(lengths, device=self.device) - 1
        return torch.tensor(
            [[*ids, *[0] * (width - len(ids))] for ids in sequences], device=self.device
        )


class SlotForward(Forward):
    """Runs a model whose state is keys and values of full and sliding attention."""

    name = "slots"
    takes_images = True

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.layer_types = layer_types(self.config)
        self.window = (
            getattr(self.config, "sliding_window", None)
            if "sliding_attention" in self.layer_types
            else None
        )
        self._cache_name = cache_parameter(module) or "past_key_values"

    def new_cache(self) -> SlotCache:
        """Make an empty cache for this model."""
        return SlotCache(len(self.layer_types))

    def prefill(
        self, prompts: Sequence[Sequence[int]], source: Sequence[int], cache: SlotCache
    ) -> torch.Tensor:
        """Compute prompts once each and append `source` [R] copies of them to the cache; logits [R,
        V].
        """
        ids_UP = self.padded(prompts)
        source_R = torch.tensor(source, device=self.device)
        cache.begin_prefill(source_R, [len(prompts[i]) for i in source])
        cache.shifts += self._shifts(prompts, source)
        logits = self._logits(cache, **self.inputs(ids_UP))
        return logits[:, 0][source_R]

    def decode(self, token_ids: Sequence[int], cache: SlotCache) -> torch.Tensor:
        """Append one token to each row of the cache; logits [N, V]."""
        positions_N = torch.tensor(cache.lengths, device=self.device)
        cache.begin_decode(positions_N)
        self.last.places = None
        logits = self._logits(
            cache,
            input_ids=torch.tensor(token_ids, device=self.device)[:, None],
            position_ids=(positions_N + torch.tensor(cache.shifts, device=self.device))[:, None],
            attention_mask=self._masks(positions_N, cache.width),
        )
        return logits[:, 0]

    def _shifts(self, prompts: Sequence[Sequence[int]], source: Sequence[int]) -> list[int]:
        """Return by how much rotary positions differ from the places in the slots."""
        if self.images is None:
            return [0] * len(source)
        shifts = [self.images.shift(prompt) for prompt in prompts]
        return [shifts[i] for i in source]

    def _logits(self, cache: SlotCache, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self.module(
            **inputs, **{self._cache_name: cache}, use_cache=True
        ).logits
        return logits

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
