"""The memory for training a base model: counted from its config, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch  # noqa: TID253

from art_core.base.errors import ConfigError
from art_local.models.load import architecture_of
from art_local.training.blueprint import UNCOUNTABLE, Blueprint, Growth
from art_local.training.pass_size import USABLE, logits_bytes
from art_local.training.rules import BLOCK, MIN_8BIT

ALWAYS, STEP, ROLLOUTS, PASS = "always", "in a step", "in rollouts", "in a pass"


@attrs.frozen(kw_only=True)
class PlanOptions:
    """What to plan for. `rank` is LoRA's, None for all weights; `merged` is whether LoRA is trained
    and served by weights with the adapter in them, as with the embedded engine. `sequences` are
    sampled together. `chunk_rows` rows of logits are held at once. `optimizer` is that of
    `TrainConfig`. With several `gpus` each holds a part of what is trained, and the engine has
    others.
    """

    dtype: torch.dtype
    rank: int | None
    merged: bool = True
    served_steps: int = 2
    sequences: int = 1
    chunk_rows: int = 512
    optimizer: str = "adamw"
    gpus: int = 1


@attrs.frozen(kw_only=True)
class Item:
    """Bytes that something takes, when it takes them, and the product that they are."""

    name: str
    bytes: int
    when: str
    formula: str


class Plan:
    """The memory of training a model, by its transformers config.

    Raises ConfigError for an architecture whose activations cannot be counted, for Muon with LoRA,
    and for several GPUs without LoRA.
    """

    def __init__(self, config: Any, options: PlanOptions) -> None:
        if options.optimizer == "muon" and options.rank is not None:
            raise ConfigError(
                "optimizer muon trains all weights, and this plan is for LoRA",
                "Plan with --full, or with another optimizer.",
            )
        if options.gpus > 1 and (options.rank is None or options.optimizer != "adamw"):
            raise ConfigError(
                "several GPUs train LoRA with optimizer adamw",
                "Plan without --full and --optimizer.",
            )
        self.options = options
        self.architecture = architecture_of(config)
        lora = None if options.rank is None else (options.rank, options.rank)
        try:
            self._blueprint = Blueprint(
                config, dtype=options.dtype, lora=lora, merged=options.merged
            )
            self._blueprint.estimated(1)
        except UNCOUNTABLE as error:
            raise ConfigError(
                f"the memory of {self.architecture} cannot be counted from its config: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._text = config.get_text_config()

    @property
    def longest_context(self) -> int | None:
        """The model's own context length, if its config states one."""
        found = getattr(self._text, "max_position_embeddings", None)
        return int(found) if found else None

    @cached_property
    def trained(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in self._blueprint.policy.trained().values())

    @cached_property
    def parameters(self) -> int:
        """How many parameters the base model has."""
        own = sum(p.numel() for p in self._blueprint.policy.model.parameters())
        return own if self.options.rank is None else own - self.trained

    @cached_property
    def _cache(self) -> Growth | None:
        try:
            return Growth.through(self._blueprint.key_value_bytes)
        except UNCOUNTABLE:
            return None

    def activations(self, context: int, *, checkpointing: bool) -> int:
        """Return the bytes of activations of one sequence."""
        kept = self._blueprint.estimated(context)
        return kept.checkpointed if checkpointing else kept.whole

    def key_values(self, context: int) -> int | None:
        """Return the bytes of one sequence's keys and values; None if they cannot be counted."""
        return None if self._cache is None else self._cache(context)

    def items(self, context: int, *, checkpointing: bool) -> list[Item]:
        """Return what takes memory with sequences of so many tokens."""
        return [*self._weights(), *self._step(context, checkpointing), *self._rollouts(context)]

    def peak(self, context: int, *, checkpointing: bool) -> int:
        """Return the bytes at the peak: those of weights, and those of a step or of rollouts."""
        sums = dict.fromkeys((ALWAYS, STEP, ROLLOUTS), 0)
        for item in self.items(context, checkpointing=checkpointing):
            sums[item.when] += item.bytes
        return sums[ALWAYS] + max(sums[STEP], sums[ROLLOUTS])

    def fits(self, context: int, memory: int, *, checkpointing: bool) -> bool:
        """Return whether the peak fits in a memory; a tenth of it is left to allocators."""
        return self.peak(context, checkpointing=checkpointing) <= USABLE * memory

    def largest_context(self, memory: int, *, checkpointing: bool) -> int:
        """Return the longest sequence that fits, up to the model's own context length; 0 if none
        does.
        """
        low, high = 0, self.longest_context or 1 << 20
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(middle, memory, checkpointing=checkpointing):
                low = middle
            else:
                high = middle - 1
        return low

    def _weights(self) -> Iterator[Item]:
        width, sets = self.options.dtype.itemsize, self.options.served_steps + 1
        if self.options.gpus > 1:
            yield from self._parts()
            return
        yield _product("base weights", ALWAYS, self.parameters, "parameters", width)
        if self.options.rank is None:
            yield _product("trained weights, fp32", ALWAYS, self.trained, "parameters", 4)
        else:
            yield _product("adapter, fp32", ALWAYS, self.trained, "parameters", 4)
        yield from self._moments()
        if self.options.rank is None:
            served = self.trained
        else:
            served = sum(t.numel() for t in self._blueprint.policy.serving.values())
        if served:
            yield _product("served weights", ALWAYS, served, "parameters", width, sets, "steps")

    def _parts(self) -> Iterator[Item]:
        """Yield what each of several GPUs holds: its part, and what is gathered for the layer at
        work, the next one, and what stands outside the layers.
        """
        gpus, width = self.options.gpus, self.options.dtype.itemsize
        yield _part("base weights, one part", self.parameters, width, gpus)
        yield _part("adapter, fp32, one part", self.trained, 4, gpus)
        yield _part("Adam's moments, one part", self.trained, 8, gpus)
        outside, layer = self.gathered
        formula = f"2 layers of {layer:,} bytes + {outside:,} outside the layers"
        yield Item(name="gathered", bytes=2 * layer + outside, when=STEP, formula=formula)

    @cached_property
    def gathered(self) -> tuple[int, int]:
        """The bytes of weights outside the layers, and of the largest layer, in the dtype."""
        policy = self._blueprint.policy
        layers = [sum(p.numel() for p in each.parameters()) for each in policy.checkpointing.layers]
        outside = sum(p.numel() for p in policy.model.parameters()) - sum(layers)
        width = self.options.dtype.itemsize
        return outside * width, max(layers, default=0) * width

    def traffic(self) -> list[Item]:
        """Return what each of several GPUs receives in one pass over a micro-batch: weights for the
        forward and again for the backward pass, and its part of the adapter's gradients.
        """
        others, gpus = self.options.gpus - 1, self.options.gpus
        outside, _ = self.gathered
        layers = (self.parameters + self.trained) * self.options.dtype.itemsize - outside
        rows = (
            ("weights, forward", layers + outside, "weights"),
            ("weights of layers, backward", layers, "weights of layers"),
            ("gradients", 4 * self.trained, "gradients"),
        )
        return [
            Item(
                name=name,
                bytes=size * others // gpus,
                when=PASS,
                formula=f"{size:,} bytes of {what} x {others} / {gpus}",
            )
            for name, size, what in rows
        ]

    def _moments(self) -> Iterator[Item]:
        """Yield the optimizer's state: AdamW holds two moments of each parameter, except for those
        that Muon moves, with one, and those whose moments have 8 bits.
        """
        policy, name = self._blueprint.policy, self.options.optimizer
        sizes = {key: p.numel() for key, p in policy.trained().items()}
        matrices = (policy.matrices() or set()) if name == "muon" else set()
        large = {key for key, n in sizes.items() if name == "adamw_8bit" and n >= MIN_8BIT}
        if one := sum(sizes[key] for key in matrices):
            yield _product("Muon's momentum", ALWAYS, one, "parameters", 4)
        if large:
            yield _moments_of_8_bits([sizes[key] for key in large])
        if two := sum(n for key, n in sizes.items() if key not in matrices | large):
            yield _product("Adam's moments", ALWAYS, two, "parameters", 8)

    def _step(self, context: int, checkpointing: bool) -> Iterator[Item]:  # noqa: FBT001
        if self.options.gpus > 1:
            part = _part("gradients, one part", self.trained, 4, self.options.gpus)
            yield attrs.evolve(part, when=STEP)
        else:
            yield _product("gradients", STEP, self.trained, "parameters", 4)
        kept = self.activations(context, checkpointing=checkpointing)
        each = f"{context:,} tokens x {kept / context:,.0f} bytes"
        yield Item(name="activations", bytes=kept, when=STEP, formula=each)
        rows = self.options.chunk_rows
        logits = logits_bytes(self._text, rows)
        formula = f"{rows:,} rows x {int(self._text.vocab_size):,} tokens x 3 x 4 bytes"
        yield Item(name="logits", bytes=logits, when=STEP, formula=formula)

    def _rollouts(self, context: int) -> Iterator[Item]:
        cache, sequences = self.key_values(context), self.options.sequences
        if cache is None or self.options.gpus > 1:
            return
        formula = f"{context:,} tokens x {cache / context:,.0f} bytes"
        if sequences > 1:
            formula += f" x {sequences:,} sequences"
        name = "keys and values"
        yield Item(name=name, bytes=cache * sequences, when=ROLLOUTS, formula=formula)


def _moments_of_8_bits(sizes: Sequence[int]) -> Item:
    """Return two moments of a byte per value, with a scale in fp32 for each block."""
    values, blocks = sum(sizes), sum(-(-size // BLOCK) for size in sizes)
    formula = f"{values:,} parameters x 2 bytes + {blocks:,} blocks x 8 bytes"
    taken = 2 * values + 8 * blocks
    return Item(name="8-bit moments", bytes=taken, when=ALWAYS, formula=formula)


def _part(name: str, count: int, width: int, gpus: int) -> Item:
    formula = f"{count:,} parameters x {width} bytes / {gpus} GPUs"
    return Item(name=name, bytes=-(-count * width // gpus), when=ALWAYS, formula=formula)


def _product(
    name: str, when: str, count: int, unit: str, width: int, times: int = 1, of: str = ""
) -> Item:
    more = f" x {times} {of}" if times > 1 else ""
    formula = f"{count:,} {unit} x {width} bytes{more}"
    return Item(name=name, bytes=count * width * times, when=when, formula=formula)
