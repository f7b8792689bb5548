"""The model being trained: its forward pass, the parameters that move, and the weights to serve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from art_core.base.errors import BackendError
from art_local.images.reader import ImageReader
from art_local.models.load import (
    PLAIN,
    Loader,
    load_model,
    reset_dynamic_rotary,
    rotary_lengths,
    silence_logs,
)
from art_local.models.placement import placement
from art_local.models.products import use_fast_products
from art_local.options import AUTO
from art_local.training.attention import OPTION, packed_options, use_training_attention
from art_local.training.batches import Allowed
from art_local.training.checkpointing import Checkpointing
from art_local.training.finite import not_finite
from art_local.training.layout import Layout
from art_local.training.logprobs import OutputHead, output_heads, token_logprobs
from art_local.training.lora import (
    ADAPTER,
    add_lora,
    dithered,
    merged_tensors,
    use_factors,
    use_merged,
)
from art_local.training.model_check import checked_logits, matching_head, probe_ids
from art_local.training.noise import without_noise
from art_local.training.text import freeze_other_parts, text_part


@attrs.frozen(eq=False)
class Kept:
    """A policy's weights at one time: copies of the trained parameters, on the CPU, and what it
    served.
    """

    parameters: Mapping[str, Tensor]
    serving: dict[str, Tensor]


class Policy:
    """A causal language model that learns, by LoRA or whole.

    - LoRA: the base is frozen in `dtype`, A and B are fp32, the forward pass runs on merged
      weights, or with `merged` False on W, A and B apart, for an engine that is given adapters; a
      `loader` that does not merge keeps its own, under autocast when `dtype` is bf16.
      Stacked experts have LoRA if weights are merged and `experts` is true.
    - Whole: fp32 master weights, the forward pass under autocast when `dtype` is bf16.

    `serving` holds the newest weights by base parameter name, in `dtype`, for an engine to serve. A
    new dict of new tensors takes its place at `refresh`; those handed out before never change.
    `packs` remembers whether its rows may be packed, None before it was tried. `rotary` gives the
    lengths of sequences that may share a forward pass. Of a multimodal model the text model is
    trained; its other parts stay as they are, and `images` reads images of sequences, if the model
    does. `activation_checkpointing` is the option of the backend, whose state is in
    `checkpointing`; a `loader` that does not merge has its own.
    """

    def __init__(
        self,
        model: Any,
        *,
        dtype: torch.dtype,
        lora: tuple[int, int] | None,
        seed: int,
        loader: Loader = PLAIN,
        merged: bool = True,
        experts: bool = True,
        activation_checkpointing: bool | str = AUTO,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.base: Any = model
        self.lora, self.is_lora = lora, lora is not None
        self.device: torch.device = next(model.parameters()).device
        self.rotary = rotary_lengths(model.config)
        reset_dynamic_rotary(model)
        self._merges, self.merged = loader.merges, merged
        has_values = self.device.type != "meta"
        plain_RV = None
        if loader.merges:
            use_fast_products(model)
            without_noise(model)
            if has_values:
                plain_RV = checked_logits(model, dtype, self._autocast())
            use_training_attention(model)
        self._text = text_part(model)
        if self._text is not None:
            freeze_other_parts(model, self._text)
        if lora is not None:
            rank, alpha = lora
            model.requires_grad_(requires_grad=False)
            model = add_lora(
                model,
                rank=rank,
                alpha=alpha,
                generator=self.generator,
                loader=loader,
                experts=experts and merged and loader.merges,
            )
        # kernels of a loader that does not merge recompute activations only in training mode
        self.model: Any = without_noise(model, training_mode=not loader.merges)
        self.checkpointing = Checkpointing(
            self._body(), activation_checkpointing if loader.merges else False
        )
        self.head = output_heads(self.base)[0]
        self.packs: bool | None = None
        self.images: ImageReader | None = None
        self.serving: dict[str, Tensor] = {}
        if self.is_lora:  # whole weights are served from the first step on
            self.refresh()
        if has_values:
            if plain_RV is None:
                plain_RV = checked_logits(self.base, dtype, self._autocast())
            self.head = self._matching_head(plain_RV)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that move, by the name they are stored under (for LoRA, peft's)."""
        return dict(self._trained())

    def matrices(self) -> set[str] | None:
        """Return the trained weight matrices of hidden layers, by name: neither embeddings nor the
        output head. None for LoRA, which trains factors of them.
        """
        if self.is_lora:
            return None
        head = self.base.get_output_embeddings()
        tables = [m for m in self.base.modules() if isinstance(m, nn.Embedding) or m is head]
        others = {id(p) for table in tables for p in table.parameters()}
        return {name for name, p in self._trained() if p.ndim == 2 and id(p) not in others}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.replace(f".{ADAPTER}.", "."), parameter

    def logprobs(
        self,
        ids_BS: Tensor,
        rows_R: Tensor,
        targets_R: Tensor,
        *,
        chunk_size: int,
        layout: Layout | None = None,
        entropy_gradient: bool = False,
        allowed: Allowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log p(target) [R] and entropy [R] at flat positions `rows_R` of [B*S]; fp32, nats.
        The entropy has a gradient if it is asked for. Both are of the distribution over the
        `allowed` tokens, by default all.

        Rows are padded on the right: no mask is needed under causal attention. With a `layout`,
        they are one packed row (B = 1), and a token that several sequences share is computed once.
        """
        options, each_R = dict[str, Any](), None
        if layout is not None:
            rows_R, targets_R, each_R, allowed = _distinct(rows_R, targets_R, allowed)
            options = packed_options(self.base, layout)
        logprobs_R, entropy_R = token_logprobs(
            self._hidden(ids_BS, rows_R, options).to(self.dtype),
            self.head,
            targets_R,
            chunk_size=chunk_size,
            entropy_gradient=entropy_gradient,
            allowed=allowed,
        )
        if each_R is None:
            return logprobs_R, entropy_R
        return logprobs_R.index_select(0, each_R), entropy_R.index_select(0, each_R)

    @torch.no_grad()
    def hidden(self, ids_BS: Tensor, rows_R: Tensor, *, layout: Layout | None = None) -> Tensor:
        """Return the last hidden states [R, H] at flat positions `rows_R`, as `logprobs` has them;
        fp32, without gradient.
        """
        options = {} if layout is None else packed_options(self.base, layout)
        return self._hidden(ids_BS, rows_R, options).float()

    def _hidden(self, ids_BS: Tensor, rows_R: Tensor, options: Mapping[str, Any]) -> Tensor:
        with self._autocast():
            body, inputs = self._body(), dict[str, Any](input_ids=ids_BS)
            if self.images is not None:
                table = self.base.get_input_embeddings()
                inputs = self.images.inputs(table, ids_BS, layout=options.get(OPTION))
            hidden_BSH = body(**{**options, **inputs}, use_cache=False).last_hidden_state
            return hidden_BSH.flatten(0, 1).index_select(0, rows_R)

    @torch.no_grad()
    def is_finite_on(self, ids: tuple[int, ...]) -> bool:
        """Return whether the log-probs of a sequence are finite."""
        ids_S = torch.tensor(ids, device=self.device)
        rows_R = torch.arange(len(ids) - 1, device=self.device)
        targets_R = ids_S[1:].clamp(max=self.head.weight_VH.shape[0] - 1)  # images are no targets
        hidden_RH = self._hidden(ids_S[None], rows_R, {}).to(self.dtype)
        logprobs_R, _ = token_logprobs(hidden_RH, self.head, targets_R, chunk_size=len(ids))
        return bool(torch.isfinite(logprobs_R).all())

    def refresh(self) -> None:
        """Compute the weights to serve from the parameters as they are now."""
        if not self._merges:
            return  # adapters are served
        if self.is_lora and not self.merged:
            use_factors(self.model)
        elif self.is_lora:
            self._serve(merged_tensors(self.model))
        else:
            self._serve(self._cast(self._trained()))

    def _serve(self, serving: dict[str, Tensor]) -> None:
        self.serving = serving
        if self.is_lora and self._merges and self.merged:
            use_merged(self.model, serving)

    def serving_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights to serve for stored parameters (those of an older step); nothing here
        moves.
        """
        if self.is_lora:
            return merged_tensors(self.model, tensors)
        return self._cast(tensors.items())

    def _cast(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: dithered(tensor.detach().to(self.device), self.dtype, salt).clone()
            for salt, (name, tensor) in enumerate(tensors)
        }

    def load(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Set the trained parameters; BackendError when names or shapes are not this policy's, or
        values are not finite.
        """
        mine, frozen = self.trained(), self._frozen()
        tensors = {n: t for n, t in tensors.items() if n not in frozen}
        odd = sorted(set(mine) ^ set(tensors))
        odd = odd or [n for n, p in mine.items() if p.shape != tensors[n].shape]
        if odd:
            raise BackendError(
                f"the weights in {source} are not those of this model: {len(odd)} "
                "parameters differ, "
                f"{odd[0]!r} first",
                "Use the lora_rank, full_finetune and base model of that run, or another "
                "model name.",
            )
        if odd := not_finite(tensors):
            raise BackendError(
                f"the weights in {source} are of no use: {len(odd)} of {len(tensors)} parameters "
                f"are not finite, {odd[0]!r} first",
                "Go back to an older checkpoint: model.register(backend, step=...).",
            )
        self._set(tensors)
        self.refresh()

    @contextmanager
    def proposing(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Compute with other weights inside the block, and serve them. The parameters stay as they
        are, so that what follows can move them there. An error takes the served weights back.

        Of a wholly trained model the weights are taken one at a time, and the served ones are what
        the block computes with.
        """
        own, served = {n: p.data for n, p in self._trained()}, self.serving
        try:
            if self.is_lora:
                self._point_to(dict(weights))
                self.refresh()
            else:
                self._serve(self._cast(weights))
                self._point_to(self.serving)
            yield
        except BaseException:
            self._point_to(own)
            self._serve(served)
            raise
        self._point_to(own)

    def _point_to(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained():
            if name in tensors:
                parameter.data = tensors[name]

    def kept(self) -> Kept:
        """Return the weights as they are now, for `put_back`."""
        copies = {n: p.detach().to("cpu", copy=True) for n, p in self._trained()}
        return Kept(copies, self.serving)

    def put_back(self, kept: Kept) -> None:
        """Return to earlier weights; nothing is merged anew, so little memory is needed."""
        self._set(kept.parameters)
        self._serve(kept.serving)

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(tensors[name])

    def save(self, directory: Path, base_model: str) -> None:
        """Write the weights as peft's adapter (LoRA) or a transformers model (whole), safetensors
        only.
        """
        if not self.is_lora:
            # with buffers and generation config, its tensors named as in the base model's files
            with silence_logs():
                self.base.save_pretrained(directory)
            return
        tensors = {n: p.detach().cpu().contiguous() for n, p in self._trained()}
        config = self.model.peft_config[ADAPTER]
        config.base_model_name_or_path = base_model
        config.inference_mode = True
        config.save_pretrained(directory)
        save_file(tensors, directory / LORA, metadata={"format": "pt"})

    def read(self, directory: Path) -> dict[str, Tensor]:
        """Return the parameters that `save` wrote, by the names they have here."""
        if self.is_lora:
            return load_file(directory / LORA)
        # tensors have other names in a model's files than in the model, experts one by one
        stored = load_model(directory, placement("cpu", "float32"), torch.float32)
        return {name: parameter.detach() for name, parameter in stored.named_parameters()}

    def _frozen(self) -> dict[str, nn.Parameter]:
        """Return the parameters of a wholly trained model that stay: those of its vision tower."""
        if self.is_lora:
            return {}
        return {n: p for n, p in self.base.named_parameters() if not p.requires_grad}

    def _body(self) -> Any:
        if self._text is not None:
            return self.base.get_submodule(self._text)
        # of some models the prefix is that of a larger one
        prefixes = (self.base.base_model_prefix, "model")
        return next(getattr(self.base, name) for name in prefixes if hasattr(self.base, name))

    def _autocast(self) -> AbstractContextManager[Any]:
        if (self.is_lora and self._merges) or self.dtype == torch.float32:
            return nullcontext()
        if self.device.type == "meta":
            return nullcontext()  # which has no autocast
        return torch.autocast(self.device.type, dtype=self.dtype)

    @torch.no_grad()
    def _matching_head(self, theirs_RV: Tensor) -> OutputHead:
        """Return the output head that makes the model's own logits of the probe."""
        with self._autocast():
            body = self._body()
            hidden_SH = body(input_ids=probe_ids(self.base), use_cache=False).last_hidden_state[0]
        hidden_RH = hidden_SH[:-1].to(self.dtype)
        return matching_head(self.base, hidden_RH, theirs_RV, tolerance=self._tolerance)

    @property
    def _tolerance(self) -> float:
        return 1e-3 if self.dtype == torch.float32 else 0.25


LORA = "adapter_model.safetensors"


def _distinct(
    rows_R: Tensor, targets_R: Tensor, allowed: Allowed | None
) -> tuple[Tensor, Tensor, Tensor, Allowed | None]:
    """Return the distinct pairs (row, target) [U], of each pair [R] its place among them, and the
    allowed tokens of the distinct ones. Equal pairs with other allowed tokens are distinct.
    """
    columns = [rows_R, targets_R] + ([] if allowed is None else [allowed.masks_R])
    pairs_UK, each_R = torch.unique(torch.stack(columns, 1), dim=0, return_inverse=True)
    if allowed is not None:
        allowed = Allowed(bits_CK=allowed.bits_CK, masks_R=pairs_UK[:, 2])
    return pairs_UK[:, 0], pairs_UK[:, 1], each_R, allowed
